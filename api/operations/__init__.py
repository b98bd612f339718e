"""The endpoints of operators: health and the admin surface."""

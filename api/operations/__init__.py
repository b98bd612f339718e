"""The operators' endpoints: health, metrics and the admin port."""

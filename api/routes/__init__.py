"""One module for each family of HTTP routes; each declares a router and nothing global."""

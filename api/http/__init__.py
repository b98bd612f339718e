"""The HTTP server: connections, access control, the state and the report of a request."""

"""The HTTP server: connections, the gate in front of the routes, metrics, log and traces."""

"""One folder for each request format: its schema, frames, route and errors."""

"""What a client may send and what it gets back, as pydantic models."""

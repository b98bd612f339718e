"""The model: its artifact, its prompts, its engine, and the state of the service."""

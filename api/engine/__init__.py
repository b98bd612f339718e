"""The model side: the artifact that is served, its prompt, the engine and its life."""

"""Who may come in: byte limits, the key, and the number of requests at once."""

"""Keys, their limits, reservations and usage, in this process or in Redis."""

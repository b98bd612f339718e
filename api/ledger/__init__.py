"""Keys, limits, reservations and usage behind one interface, in this process and its files or in Redis."""

"""The life of a request, the same for every dialect: admit, render, generate, account."""

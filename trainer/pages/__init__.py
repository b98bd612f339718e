"""The HTML pages that the trainer writes, and their charts."""

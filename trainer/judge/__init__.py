"""Measure the merged model against its base, and apply the gates."""

"""Run the arms of a sweep: one process for each arm, here or on Ray."""

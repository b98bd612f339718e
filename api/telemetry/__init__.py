"""Log lines, metrics and trace spans; every other room may import this one."""

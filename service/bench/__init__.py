"""The yardstick: what a running service does, beside what this machine could do."""

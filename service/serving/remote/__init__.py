"""The core in another process: one core process serves many API processes."""

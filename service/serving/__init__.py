"""Models side by side, and one request to one prediction."""

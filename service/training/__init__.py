"""Training: what makes a model of pictures."""

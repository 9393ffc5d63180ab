"""Training: what makes a model of images."""

"""Training: folder of images in, model out."""

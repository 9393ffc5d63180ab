"""Visualisation: what the layers of a network respond to."""

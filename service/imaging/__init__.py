"""Bytes to a safe RGB image to crops; no PyTorch."""

"""The model store: manifests, weights files and their downloads; no PyTorch."""

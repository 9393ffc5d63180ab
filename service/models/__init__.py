"""The model store: manifests, weights files, downloads and ensembles; no PyTorch."""

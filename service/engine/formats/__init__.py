"""Weights files of Caffe, PyTorch and safetensors, read without running code in them."""

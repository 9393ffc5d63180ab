"""Weights files: Caffe's, torchvision's and safetensors, read without running their code."""

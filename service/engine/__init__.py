"""Networks, weights and executors: OpenVINO on a CPU, PyTorch on a GPU."""

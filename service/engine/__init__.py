"""Everything that computes: on a CPU by OpenVINO, on a GPU by PyTorch."""

"""Benchmark: a running service beside the limit of this machine, and capacity planning."""

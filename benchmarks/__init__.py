"""Benchmarks, which are not part of the service."""

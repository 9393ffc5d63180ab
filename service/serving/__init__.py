"""Served models: registry, classification of requests, metrics."""

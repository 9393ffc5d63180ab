"""Peers: other serving systems, benchmarked beside this service."""

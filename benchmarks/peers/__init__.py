"""Peers: other serving systems, measured beside this service."""

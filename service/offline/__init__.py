"""Offline work: bulk classification, evaluation, visualisation of a network."""

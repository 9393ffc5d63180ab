"""Queueing, batching and admission control."""

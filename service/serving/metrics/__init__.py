"""The service's metrics."""

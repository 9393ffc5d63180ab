"""How many replicas a rate of requests needs."""

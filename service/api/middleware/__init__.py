"""ASGI middleware, a file each."""

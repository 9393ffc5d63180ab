"""The listening process: the application put together, uvicorn, its connections and its log."""

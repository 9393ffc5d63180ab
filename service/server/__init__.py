"""The listening process: application, uvicorn, connections and logging."""

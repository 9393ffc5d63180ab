"""The worker process, which decodes and computes, and the client for it."""

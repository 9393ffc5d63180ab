"""The Open Inference Protocol: requests, responses, and routes over HTTP."""

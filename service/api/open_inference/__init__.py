"""The Open Inference Protocol: its messages, and its routes over HTTP."""

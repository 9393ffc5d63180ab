"""REST, Open Inference and gRPC: routes, authentication, uploads, and errors to statuses."""

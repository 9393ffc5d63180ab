"""HTTP: routes, uploads, probes, and the only table from errors to statuses."""

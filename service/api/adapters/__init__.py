"""Other servers' APIs, a file each, for clients that people already have; off by default."""

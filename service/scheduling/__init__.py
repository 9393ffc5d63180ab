"""Which rows wait, which run next, and which requests are refused."""

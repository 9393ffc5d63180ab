"""A small server for each peer, as in its documentation."""

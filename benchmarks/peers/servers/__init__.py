"""One small server for each peer, written as its documentation would have a user do it."""

"""The routes of the REST API, a file each."""

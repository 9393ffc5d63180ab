"""Bulk classification: images from files, folders and archives to a results file."""

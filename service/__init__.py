"""Classify pictures with GoogLeNet over HTTP."""

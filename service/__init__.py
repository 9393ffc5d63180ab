"""Classify images with GoogLeNet over HTTP."""

import logging

logging.getLogger(__name__).addHandler(logging.NullHandler())  # who runs us decides what is shown

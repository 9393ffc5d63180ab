"""Image classification service."""

import logging

logging.getLogger(__name__).addHandler(
    logging.NullHandler()
)  # the program that imports it configures logging

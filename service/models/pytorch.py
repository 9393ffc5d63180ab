"""PyTorch as an optional dependency: whether it is installed, and how to install it."""

from importlib import util

INSTALL = "pip install 'googlenet-service[torch]'"


def is_installed() -> bool:
    """Whether PyTorch can be imported; does not import it."""
    return util.find_spec("torch") is not None

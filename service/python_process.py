"""How to start another process of this Python with the same modules, in any folder."""

import os
import sys


def command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of the service."""
    return [sys.executable, "-P", "-m", module, *arguments]  # -P: not from the current folder


def environment() -> dict[str, str]:
    """Return the environment for it, with the import path of this process."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}

"""Our Python, to be started once more: with the same modules, wherever it is started."""

import os
import sys


def command(module: str, *arguments: str) -> list[str]:
    """Give the command that runs a module of ours as a program."""
    return [sys.executable, "-P", "-m", module, *arguments]  # nothing from the present folder


def environment() -> dict[str, str]:
    """Give the environment to run it in: where modules are found is the same as here."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}

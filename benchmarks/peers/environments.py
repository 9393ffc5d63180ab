"""A virtual environment for each peer; our packages come after its own."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PLACE = ROOT / ".peers"

_INSTALL_SECONDS = 900.0
_QUIETLY = ("--disable-pip-version-check", "--quiet")


class Unavailable(Exception):
    """A peer cannot be installed, started or measured; has the reason."""


def interpreter(name: str) -> Path:
    """Return a peer's Python, after installing its requirements if they have changed."""
    folder = PLACE / name
    python = folder / "bin" / "python"
    requirements = HERE / "requirements" / f"{name}.txt"
    required, done = requirements.read_text(), folder / "installed.txt"
    if done.is_file() and done.read_text() == required:
        return python
    make_place()
    _run(_base(name), "-m", "venv", "--clear", str(folder))
    _run(str(python), "-m", "pip", "install", *_QUIETLY, "--requirement", str(requirements))
    _append_ours(folder)
    done.write_text(required)
    return python


def _base(name: str) -> str:
    """Return the Python for a new environment: this one, for Triton the system's.

    Triton loads the system's libpython, which requires the same Python's standard library.
    """
    if name != "triton":
        return sys.executable
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    path = shutil.which(python, path=os.defpath)
    if not path:
        raise Unavailable(f"it needs the system's own {python}, with its venv and libpython")
    return path


def make_place() -> None:
    """Make the folder of all environments, ignored by git."""
    PLACE.mkdir(exist_ok=True)
    (PLACE / ".gitignore").write_text("*\n")


def _append_ours(folder: Path) -> None:
    """Let the peer import torch and our engine, after its own packages."""
    (packages,) = folder.glob("lib/python3.*/site-packages")
    paths = [sysconfig.get_path("purelib"), str(ROOT)]
    (packages / "zz_ours.pth").write_text("\n".join(paths) + "\n")


def _run(*command: str) -> None:
    try:
        subprocess.run(  # noqa: S603 - our own command
            command, check=True, capture_output=True, text=True, timeout=_INSTALL_SECONDS
        )
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip() or error.stdout.strip() or "no output").splitlines()[-1]
        raise Unavailable(f"it cannot be installed: {last}") from error
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"it was not installed in {_INSTALL_SECONDS:.0f} s") from error

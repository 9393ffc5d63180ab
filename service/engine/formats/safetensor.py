"""safetensors files, which contain no code."""

from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from service.errors import BadWeights


def read(path: Path) -> dict[str, Tensor]:
    """Read a file's tensors by name; raises `BadWeights` for anything else."""
    return parse(path.read_bytes(), path.name)


def parse(data: bytes, name: str) -> dict[str, Tensor]:
    """Parse a file's bytes; `name` is for the error."""
    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, TypeError, ValueError, RuntimeError, KeyError) as error:
        raise BadWeights(f"{name} is not a safetensors file, or is cut short") from error


def write(tensors: dict[str, Tensor], path: Path, *, source: str) -> None:
    """Write tensors, with their source in the file's metadata."""
    contiguous = {name: value.clone().contiguous() for name, value in sorted(tensors.items())}
    # One key only: the order of several, and so the file's digest, would vary.
    path.write_bytes(safetensors.torch.save(contiguous, metadata={"source": source}))

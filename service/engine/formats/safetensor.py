"""safetensors: names, shapes and bytes, and no code at all."""

from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from service.errors import BadWeights


def read(path: Path) -> dict[str, Tensor]:
    """Give the tensors of a file by name; raises `BadWeights` for anything else."""
    return parse(path.read_bytes(), path.name)


def parse(data: bytes, name: str) -> dict[str, Tensor]:
    """Do the same with bytes; `name` is for the error."""
    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, TypeError, ValueError, RuntimeError, KeyError) as error:
        raise BadWeights(f"{name} is not a safetensors file, or is cut short") from error


def write(tensors: dict[str, Tensor], path: Path, *, source: str) -> None:
    """Write tensors, with where they came from in the file's own metadata."""
    apart = {name: value.clone().contiguous() for name, value in sorted(tensors.items())}
    # One key only: the order of several would differ from run to run, and so the file's digest.
    path.write_bytes(safetensors.torch.save(apart, metadata={"source": source}))

"""safetensors: names, shapes and bytes, and no code at all."""

from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from service.errors import BadWeights


def read(path: Path) -> dict[str, Tensor]:
    """Give the tensors of a file by name; raises `BadWeights` for anything else."""
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise BadWeights(f"{path.name} is not a safetensors file, or is cut short") from error


def write(tensors: dict[str, Tensor], path: Path, *, source: str) -> None:
    """Write tensors, with where they came from in the file's own metadata."""
    contiguous = {name: value.contiguous() for name, value in sorted(tensors.items())}
    safetensors.torch.save_file(contiguous, path, metadata={"format": "pt", "source": source})

"""PyTorch's pickled `.pth`: a state dict, loaded with nothing but tensors allowed."""

import warnings
from pathlib import Path

import torch
from torch import Tensor

from service.errors import BadWeights


def read(path: Path) -> dict[str, Tensor]:
    """Give the tensors of a state dict by name; raises `BadWeights` for anything else."""
    try:
        with warnings.catch_warnings(action="ignore"):  # what is wrong is told by the error
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile pickle makes its reader raise anything
        raise BadWeights(
            f"{path.name} is not a PyTorch state dict, is cut short, or holds more than tensors"
        ) from error
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise BadWeights(f"{path.name} holds something else than a state dict of tensors")
    return content

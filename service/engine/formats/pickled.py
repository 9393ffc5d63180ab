"""PyTorch's pickled files: loaded with tensors and plain values only."""

import argparse
import warnings
from pathlib import Path

import torch
from torch import Tensor
from torch.serialization import safe_globals

from service.engine.formats import checkpoint
from service.engine.formats.checkpoint import Say
from service.errors import BadWeights

# File suffixes; `.tar` is for `.pth.tar`, which is no archive.
ENDINGS = (".pth", ".pt", ".ckpt", ".bin", ".tar")


def read(path: Path, say: Say = checkpoint.ignore) -> dict[str, Tensor]:
    """Read the tensors of a state dict by name; raises `BadWeights` for anything else.

    The state dict may be part of a training checkpoint; `say` is called with which part.
    """
    try:
        with (
            warnings.catch_warnings(action="ignore"),  # the error says it
            # Checkpoints have the training options in one; it has no code.
            safe_globals([argparse.Namespace]),
        ):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a malicious pickle can raise anything
        raise BadWeights(
            f"{path.name} is not a PyTorch state dict, is cut short, or holds more than tensors;"
            " save the network's state_dict() alone"
        ) from error
    return checkpoint.weights(content, path.name, say)

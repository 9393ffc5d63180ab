"""The checkpoint file: the state from which an interrupted training resumes."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from service.errors import ModelError


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Replace the checkpoint atomically."""
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        torch.save(dict(content), file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def load(path: Path, *, of: str) -> dict[str, Any] | None:
    """Read the checkpoint, None without a file; `of` identifies the training it must be of.

    Raises `ModelError` if it is of another training, or damaged.
    """
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        identity = content["of"]
    except Exception as error:
        raise ModelError(f"{path} is damaged; delete it to start from the beginning") from error
    if identity != of:
        raise ModelError(
            f"{path} is of a training with other options or images; delete it to start from the"
            " beginning"
        )
    return content

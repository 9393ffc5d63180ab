"""The checkpoint: a training as it was, from which it goes on after whatever happened."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from service.errors import ModelError


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Replace the checkpoint in one step: it is the old or the new one, never a part."""
    fresh = path.with_suffix(".part")
    with fresh.open("wb") as file:
        torch.save(dict(content), file)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def load(path: Path, *, of: str) -> dict[str, Any] | None:
    """Read the checkpoint, if there is one; `of` says what training it has to be of.

    Raises `ModelError` if it is of another, or damaged.
    """
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = content["of"]
    except Exception as error:
        raise ModelError(f"{path} is damaged; delete it to begin anew") from error
    if found != of:
        raise ModelError(
            f"{path} is of a training with other options or images; delete it to begin anew"
        )
    return content

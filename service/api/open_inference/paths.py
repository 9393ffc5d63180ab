"""The paths of the Open Inference Protocol, and their parameters."""

import re
from typing import Annotated

from fastapi import Path

from service.api.open_inference.handler import named
from service.settings import MODEL

MODELS = "/v2/models/{name}"
VERSION = MODELS + "/versions/{version}"
INFER = MODELS + "/infer"
INFER_VERSION = VERSION + "/infer"
INDEX = "/v2/repository/index"

_VERSION = r"[A-Za-z0-9._,-]{1,256}"
_INFER = re.compile(rf"/v2/models/(?P<name>{MODEL})(?:/versions/(?P<version>{_VERSION}))?/infer")

Name = Annotated[str, Path(pattern=rf"^{MODEL}$", description="a model that is served")]
Version = Annotated[str, Path(pattern=rf"^{_VERSION}$", description="its version")]


def target(path: str) -> tuple[str, str] | None:
    """Give an infer path's route template and its model's name in the registry."""
    if not (match := _INFER.fullmatch(path)):
        return None
    version = match["version"] or ""
    return INFER_VERSION if version else INFER, named(match["name"], version)

"""OpenVINO without its telemetry: the only place where it is imported."""

import sys
from functools import cache
from typing import Any

# OpenVINO (and NNCF) report their use to a web service through this package where it can be
# imported, and do without it where it cannot. Nothing here is ever reported.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # None: "cannot be imported"

import openvino  # noqa: E402 - only after the line above
from openvino import opset1, opset13, preprocess  # noqa: E402 - the same

__all__ = ["core", "openvino", "opset1", "opset13", "preprocess"]


@cache
def core() -> Any:
    """Give the process's one core, which is never taken down.

    The plugin for CPUs gives the thread that loads it an alternate signal stack, and the one before
    back when it is unloaded. Two that end in another order than the reverse of their beginnings
    leave one that is not there any more: the next signal would crash the process.
    """
    return openvino.Core()

"""The import of OpenVINO, without its telemetry; other modules import it from here."""

import sys
from functools import cache
from typing import Any

# OpenVINO and NNCF report their use to a web service through this package if it can be imported.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # None: "cannot be imported"

import openvino  # noqa: E402 - only after the line above
from openvino import opset1, opset13, preprocess  # noqa: E402 - the same

__all__ = ["core", "error_line", "openvino", "opset1", "opset13", "preprocess"]


@cache
def core() -> Any:
    """Return the process's only core, which is never unloaded.

    The CPU plugin sets an alternate signal stack when it is loaded and restores the previous one
    when it is unloaded. Two cores unloaded in any but the reverse order would leave a freed stack
    set, and the next signal would crash the process.
    """
    return openvino.Core()


def error_line(error: Exception) -> str:
    """Return the message of an OpenVINO error, without source locations and advice."""
    stripped = [line.strip() for line in str(error).splitlines()]
    lines = [line for line in stripped if line and "please" not in line.lower()]
    if "Exception:" in lines[:-1]:  # raised by tracing; graphs follow it
        return lines[lines.index("Exception:") + 1]
    return lines[-1] if lines else type(error).__name__

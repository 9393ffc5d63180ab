"""OpenVINO without its telemetry: the only place where it is imported."""

import sys

# OpenVINO (and NNCF) report their use to a web service through this package where it can be
# imported, and do without it where it cannot. Nothing here is ever reported.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # None: "cannot be imported"

import openvino  # noqa: E402 - only after the line above
from openvino import opset1, opset13, preprocess  # noqa: E402 - the same

__all__ = ["openvino", "opset1", "opset13", "preprocess"]

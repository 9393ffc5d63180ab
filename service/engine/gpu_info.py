"""The GPUs of this machine, by NVML."""

from contextlib import suppress

import pynvml  # type: ignore[import-untyped]  # no stubs


def count() -> int:
    """Count the GPUs; 0 without a driver."""
    with suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount())  # pragma: no cover - needs a GPU
    return 0

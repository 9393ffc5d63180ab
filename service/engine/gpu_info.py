"""The GPUs of this machine, by NVIDIA's own library."""

from contextlib import suppress

import pynvml  # type: ignore[import-untyped]  # it has no stubs


def count() -> int:
    """Count the GPUs that the driver tells of; 0 where there is none."""
    with suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount())  # pragma: no cover - needs a GPU
    return 0

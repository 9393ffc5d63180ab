"""An in-memory file with a limit on the bytes read from it and on the decoding time."""

import io
import time

from service.errors import TooLarge

_MAX_READS = 4  # of the file's length: decoders read headers two or three times, pixels once
_ALLOWANCE = 65_536  # bytes more, for small files, which are all header
_LARGE = 4096  # bytes whose decoding takes longer than reading the clock
_CLOCK_INTERVAL = 256  # smaller reads between two readings of the clock


class MeteredFile(io.BytesIO):
    """A file whose `read` raises `TooLarge` when decoding costs too much.

    The limits are 4 times the file's length in bytes read, and `seconds` of this thread's CPU
    time since the file was made, so that a busy machine refuses the same images as an idle one.
    The time between two reads is not bounded.
    """

    def __init__(self, data: bytes, seconds: float) -> None:
        super().__init__(data)
        self._left = _MAX_READS * len(data) + _ALLOWANCE
        self._reads = 0
        self._seconds = seconds
        self._end = time.thread_time() + seconds

    def read(self, size: int | None = -1, /) -> bytes:
        """Read, or raise `TooLarge` past a limit."""
        content = super().read(size)
        self._left -= len(content)
        if self._left < 0:
            raise TooLarge(f"decoding the image reads it over {_MAX_READS} times")
        self._reads += 1
        is_due = len(content) >= _LARGE or self._reads % _CLOCK_INTERVAL == 0
        if is_due and time.thread_time() > self._end:
            raise TooLarge(f"the image takes over {self._seconds:g} seconds to decode")
        return content

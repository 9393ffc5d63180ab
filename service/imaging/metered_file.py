"""A file in memory that may be read only so much, for only so long."""

import io
import time

from service.errors import TooLarge

_TIMES = 4  # decoders read headers twice or three times, and pixels once
_LEAST = 65_536  # bytes, for the smallest files, which are all header
_LARGE = 4096  # bytes that take a decoder longer than to look at the clock
_SMALL = 256  # smaller reads, after which it is time to look, too


class MeteredFile(io.BytesIO):
    """A file whose `read` raises `TooLarge` when decoding it costs too much.

    It does so when more than 4 times the file's length was read, and when this thread has
    computed for `seconds` since the file was made. The time is the thread's own, so a busy
    machine refuses what an idle one does. What happens between two reads is not bounded.
    """

    def __init__(self, data: bytes, seconds: float) -> None:
        super().__init__(data)
        self._left = _TIMES * len(data) + _LEAST
        self._reads = 0
        self._seconds = seconds
        self._end = time.thread_time() + seconds

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as any file does, while there is time and the file is not read again and again."""
        content = super().read(size)
        self._left -= len(content)
        if self._left < 0:
            raise TooLarge(f"to decode the image is to read it over {_TIMES} times")
        self._reads += 1
        is_due = len(content) >= _LARGE or self._reads % _SMALL == 0
        if is_due and time.thread_time() > self._end:
            raise TooLarge(f"the image takes over {self._seconds:g} seconds to decode")
        return content

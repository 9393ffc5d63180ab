"""Server processes, which are stopped with all their descendants."""

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_TERMINATE_SECONDS = 20.0
_KILL_SECONDS = 10.0


def adopt_orphans() -> None:
    """Become the parent of a server's orphans, to kill them (Linux only)."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@contextlib.contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str], log: Path, folder: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in a session of its own; stop it with all its descendants at the end."""
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own command
            command,
            cwd=folder,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_TERMINATE_SECONDS)
    end = time.monotonic() + _KILL_SECONDS
    while (left := _descendants(os.getpid())) and time.monotonic() < end:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.poll()
        _reap()
        time.sleep(0.05)


def _reap() -> None:
    """Reap adopted processes that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _descendants(pid: int) -> list[int]:
    parents = dict(_parents())
    descendants, generation = [], {pid}
    while generation:
        generation = {child for child, parent in parents.items() if parent in generation}
        descendants += generation
    return descendants


def _parents() -> Iterator[tuple[int, int]]:
    """Yield the id of every process and of its parent."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The state and the parent follow the name, which is in brackets and may contain any.
            after = stat.read_text(errors="replace").rpartition(")")[2].split()
            yield int(stat.parent.name), int(after[1])

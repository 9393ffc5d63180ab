"""Limits of connections: on their number and on waiting for a client."""

import resource
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

_SPARE_FILES = 64  # for the worker's pipes, the log and libraries
_MOST_FILES = 1024 * 1024  # to ask for where there is no limit


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of one connection; see `service.settings` for each."""

    header_seconds: float
    header_bytes: int
    send_seconds: float


class Evictable(Protocol):
    """A connection that can be closed to make room for another."""

    def end(self, reason: str) -> None:
        """Close it."""
        ...


class Connections:
    """The open connections of a port; the longest idle one is closed to make room for another."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: set[Evictable] = set()
        self._idle: OrderedDict[Evictable, None] = OrderedDict()  # longest first

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, connection: Evictable) -> bool:
        """Add a connection, evicting the longest idle one if need be; returns if there is room."""
        if len(self._open) >= self._most:
            if not self._idle:
                return False
            oldest, _ = self._idle.popitem(last=False)
            oldest.end("evicted")
        self._open.add(connection)
        self._idle[connection] = None
        return True

    def mark_busy(self, connection: Evictable) -> None:
        """Mark a connection as busy with a request."""
        self._idle.pop(connection, None)

    def mark_idle(self, connection: Evictable) -> None:
        """Mark a connection as idle."""
        self._idle[connection] = None

    def remove(self, connection: Evictable) -> None:
        """Remove a connection that is being closed."""
        self._open.discard(connection)
        self._idle.pop(connection, None)


@dataclass(frozen=True, slots=True)
class Ports:
    """The connections of each port with limits of its own, and of all others."""

    main: Connections
    others: Mapping[int, Connections]

    def __len__(self) -> int:
        return len(self.main) + sum(map(len, self.others.values()))

    def of(self, server: tuple[str, int | None] | None) -> Connections:
        """Return those of the local address of a connection."""
        return self.others.get((server and server[1]) or 0, self.main)


def file_limit() -> int:
    """Raise the limit of open files as far as allowed; returns it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = _MOST_FILES if most == resource.RLIM_INFINITY else most
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))
    return files


def most_connections(limit: int, *, files: int, backlog: int) -> int:
    """Return the number of connections that the limit of open files allows, up to `limit` (0: any).

    A whole backlog may be accepted before the connections evicted for it are closed.
    """
    spare = min(_SPARE_FILES + backlog, files // 2)
    return min(limit or files, files - spare)

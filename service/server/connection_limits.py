"""Bounds of connections: how many there may be, and how long they may wait."""

import resource
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

_SPARE_FILES = 64  # for the worker's pipes, the log and libraries

_MOST_FILES = 1024 * 1024  # of what a process asks for where there is no limit


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one connection; see `service.settings` for each."""

    header_seconds: float
    header_bytes: int
    send_seconds: float


class Evictable(Protocol):
    """A connection that can be closed to make room for another."""

    def end(self, reason: str) -> None:
        """Close it."""
        ...


class Connections:
    """The open connections of a port; one that nobody is answered on can make room for another."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: set[Evictable] = set()
        self._resting: OrderedDict[Evictable, None] = OrderedDict()  # since longest first

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, connection: Evictable) -> bool:
        """Take one more, if need be for the one that has rested longest; tell if there is room."""
        if len(self._open) >= self._most:
            if not self._resting:
                return False
            oldest, _ = self._resting.popitem(last=False)
            oldest.end("evicted")
        self._open.add(connection)
        self._resting[connection] = None
        return True

    def work(self, connection: Evictable) -> None:
        """Note that a request is being answered on a connection."""
        self._resting.pop(connection, None)

    def rest(self, connection: Evictable) -> None:
        """Note that none is, any more."""
        self._resting[connection] = None

    def leave(self, connection: Evictable) -> None:
        """Forget a connection that is being closed."""
        self._open.discard(connection)
        self._resting.pop(connection, None)


@dataclass(frozen=True, slots=True)
class Ports:
    """The connections of each port that has its own; all others are on the main one."""

    main: Connections
    others: Mapping[int, Connections]

    def __len__(self) -> int:
        return len(self.main) + sum(len(one) for one in self.others.values())

    def of(self, server: tuple[str, int | None] | None) -> Connections:
        """Give those of the address at which a connection came in."""
        return self.others.get((server and server[1]) or 0, self.main)


def file_limit() -> int:
    """Raise how many files the process may have open as far as it may, and give that number."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = _MOST_FILES if most == resource.RLIM_INFINITY else most
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))
    return files


def most_connections(asked: int, *, files: int, backlog: int) -> int:
    """Give how many connections there may be: those asked for (0: all) that files are left for.

    A whole backlog may be accepted before one that made room for it is closed.
    """
    spare = min(_SPARE_FILES + backlog, files // 2)
    return min(asked or files, files - spare)

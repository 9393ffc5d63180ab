"""What the supervisor tells a process that it starts, over the socket that both keep."""

import pickle
import socket
from dataclasses import dataclass

from service.settings import Settings

_LARGEST = 1024 * 1024  # bytes; settings are a few thousand


@dataclass(frozen=True, slots=True)
class ChildSettings:
    """The settings of one process, and the numbers of the listening sockets that it inherits."""

    settings: Settings
    port: int  # of HTTP
    http: int = -1
    probes: int = -1


def send(control: socket.socket, child: ChildSettings) -> None:
    """Send them, in one message."""
    control.sendall(pickle.dumps(child))


def receive(control: socket.socket) -> ChildSettings:
    """Receive them: the first message."""
    child: ChildSettings = pickle.loads(control.recv(_LARGEST))  # noqa: S301 - our own process
    return child


def share_of(settings: Settings) -> Settings:
    """Return the settings of one of several API processes: its share of what is limited."""
    count = settings.api_processes
    most = -(-settings.max_connections // count)
    nbytes = max(1024, settings.max_inflight_body_bytes // count)
    return settings.model_copy(update={"max_connections": most, "max_inflight_body_bytes": nbytes})

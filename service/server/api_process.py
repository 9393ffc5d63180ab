"""An API process: HTTP and gRPC, with the core in another process."""

import logging
import socket
import sys

from service.api.tls import Certificate
from service.server import app, child_settings, log_config
from service.server.http_server import HttpServer
from service.serving.remote.remote_core import RemoteCore

logger = logging.getLogger("service.server.api_process")  # `__name__` is "__main__" here


def main(control: socket.socket) -> None:
    """Serve until signalled, or until the supervisor has ended."""
    child = child_settings.receive(control)
    settings = child.settings
    log_config.configure(settings)
    server = HttpServer(settings)
    core = RemoteCore(control, settings.served, settings.stall_seconds, server.stop)
    application = app.create_app(
        settings,
        core=core,
        is_leaving=server.is_leaving,
        certificate=Certificate.read(settings),
    )
    probes = socket.socket(fileno=child.probes) if child.probes >= 0 else None
    server.run(application, core.metrics, [socket.socket(fileno=child.http)], probes)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))

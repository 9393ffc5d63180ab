"""The core process: models, queue, cache and quotas, for all API processes."""

import asyncio
import gc
import signal
import socket
import sys

from service.models import store
from service.server import app, child_settings, log_config
from service.server.startup import Startup
from service.serving.metrics import loop_lag
from service.serving.metrics.metrics import Metrics
from service.serving.remote.core_server import CoreServer
from service.settings import Settings


async def serve(settings: Settings, port: int, control: socket.socket) -> int:
    """Serve the API processes that the supervisor connects, until it closes `control`.

    Returns the exit status: 1 if a model that was to be served at start could not be loaded.
    """
    failed = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        loop.call_soon_threadsafe(failed.set)  # it is called in the thread that loads, too

    startup = Startup(
        settings,
        store.locate(settings.model_store),
        stop,
        lambda: port,
    )
    metrics = Metrics()
    core = app.create_core(settings, startup.load, metrics, startup.gave_up, startup.serves)
    metrics.is_ready(lambda: core.status.is_ready)
    server = CoreServer(core)
    loop.add_signal_handler(signal.SIGHUP, core.models.refresh)
    gc.collect()
    gc.freeze()  # objects made so far stay; collections need not traverse them
    async with core:
        works = [
            asyncio.create_task(work)
            for work in (
                server.accept(control),
                server.publish(),
                loop_lag.watch(metrics.lag),
            )
        ]
        stopped = asyncio.create_task(failed.wait())
        await asyncio.wait([works[0], stopped], return_when=asyncio.FIRST_COMPLETED)
        for task in (*works, stopped):
            task.cancel()
        await asyncio.gather(*works, stopped, return_exceptions=True)
    return int(startup.has_failed)


def main(control: socket.socket) -> int:
    """Read the settings, and serve."""
    child = child_settings.receive(control)
    log_config.configure(child.settings)
    return asyncio.run(serve(child.settings, child.port, control))


if __name__ == "__main__":
    # The supervisor decides when it ends: after the API processes.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(main(socket.socket(fileno=int(sys.argv[1]))))

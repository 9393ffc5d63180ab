"""Creates a served model from the settings: the composition root below HTTP."""

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

from service import cpu_info
from service.imaging.image_decoder import Bounds
from service.scheduling.types import Report
from service.serving.backend import Backend
from service.serving.served_model import ServedModel
from service.serving.types import Limits
from service.settings import Settings
from service.worker import client

LoadBackend = Callable[[Settings, Future[None]], Backend]
"""Loads the models onto the device: blocking, for seconds.

Raises soon after the future is done, which cancels the load.
"""


def create_served_model(
    settings: Settings,
    *,
    load: LoadBackend = client.load,
    report: Report = lambda _: None,
    gave_up: Callable[[], None] = lambda: None,
) -> ServedModel:
    """Create a served model; its batcher's reports are dropped by default.

    `gave_up` is called when its worker has ended too often to be restarted. Raises what `Bounds.of`
    does.
    """
    limits = Limits(
        image=Bounds.of(settings),
        max_queue_bytes=settings.max_queue_bytes,
        cache_bytes=settings.cache_bytes,
        background_share=settings.background_share,
        decoders=cpu_info.decoding(settings.decode_threads),
        stall_seconds=settings.stall_seconds,
    )
    return ServedModel(partial(load, settings), limits, report, gave_up)

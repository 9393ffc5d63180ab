"""A served model from the settings: the composition root below HTTP."""

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

from service import cpu_info
from service.imaging import heif
from service.imaging.image_decoder import Bounds
from service.scheduling.types import Report
from service.serving.backend import Backend
from service.serving.served_model import ServedModel
from service.serving.types import Limits
from service.settings import Settings
from service.worker import client

LoadBackend = Callable[[Settings, Future[None]], Backend]
"""Reads the models and puts them on the device: blocking, seconds long.

Ends soon, with an error, when the future is done: nothing waits for the models any more.
"""


def create_served_model(
    settings: Settings,
    *,
    load: LoadBackend = client.load,
    report: Report = lambda _: None,
    gave_up: Callable[[], None] = lambda: None,
) -> ServedModel:
    """Put together what serves a model; what its batcher reports goes nowhere by default.

    `gave_up` is called when its worker has ended too often to be started again.
    """
    if settings.heic:
        heif.require()
    limits = Limits(
        image=Bounds(settings.max_pixels, settings.decode_timeout_seconds, settings.heic),
        max_queue_bytes=settings.max_queue_bytes,
        cache_bytes=settings.cache_bytes,
        background_share=settings.background_share,
        decoders=cpu_info.decoding(settings.decode_threads),
        stall_seconds=settings.stall_seconds,
    )
    return ServedModel(partial(load, settings), limits, report, gave_up)

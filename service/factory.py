"""A served model from the settings: the composition root below HTTP."""

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

from service import apart, heif, processors
from service.answer_types import Limits
from service.backend import Backend
from service.images import Bounds
from service.servable import Servable
from service.settings import Settings
from service.work import Report

Load = Callable[[Settings, Future[None]], Backend]
"""Reads the models and puts them on the device: blocking, seconds long.

Ends soon, with an error, when the future is done: nothing waits for the models any more.
"""


def create_servable(
    settings: Settings,
    *,
    load: Load = apart.load,
    report: Report = lambda _: None,
    gave_up: Callable[[], None] = lambda: None,
) -> Servable:
    """Put together what serves a model; what its batcher reports goes nowhere by default.

    `gave_up` is called when its worker has ended too often to be started again.
    """
    if settings.heic:
        heif.require()
    limits = Limits(
        picture=Bounds(settings.max_pixels, settings.decode_seconds, settings.heic),
        max_queue_bytes=settings.max_queue_bytes,
        cache_bytes=settings.cache_bytes,
        bulk_share=settings.bulk_share,
        decoders=processors.decoding(settings.decode_threads),
        stall_seconds=settings.stall_seconds,
    )
    return Servable(partial(load, settings), limits, report, gave_up)

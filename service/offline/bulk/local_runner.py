"""Bulk classification by a classifier in this process."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from service import cpu_info
from service.errors import ServiceError, TooLarge, UnreadableImage, UnsupportedType
from service.imaging.archives import Source
from service.models import store
from service.offline.bulk import ordered_tasks
from service.offline.bulk.results_file import Origin, Row
from service.offline.evaluation import TIMEOUT
from service.serving.classifier import Classifier
from service.serving.types import Answer
from service.settings import Settings

BAD = (TooLarge, UnsupportedType, UnreadableImage)  # errors of an image itself

Put = Callable[[Row], None]

_PREDICTION = ("label", "wnid", "index", "probability")


def expected(settings: Settings) -> Origin:
    """Return the origin of results by these settings; raises `ModelError` without the model."""
    version = store.locate(settings.model_store).version(settings.model)
    return Origin(settings.model, version, settings.views)


def origin(classifier: Classifier, settings: Settings) -> Origin:
    """Return the origin of a ready classifier's results."""
    ensemble = classifier.ensemble
    return Origin(ensemble.name, ensemble.version, settings.views)


async def rank(
    classifier: Classifier, sources: Iterator[Source], put: Put, settings: Settings, top_k: int
) -> None:
    """Classify the images, and put a row for each, in their order.

    An image's own error is in its row; raises any other error.
    """
    plan = settings.views
    made_by = origin(classifier, settings)
    decoding = cpu_info.decoding(settings.decode_threads)

    async def row(source: Source) -> Row:
        try:
            data = await asyncio.to_thread(source.read)
        except ServiceError as error:
            return Row(source.name, error=str(error))
        [answer] = await classifier.classify([data], plan=plan, top_k=top_k, seconds=TIMEOUT)
        if isinstance(answer, Answer):
            return Row(source.name, plain(answer.predictions), origin=made_by)
        if isinstance(answer, BAD):
            return Row(source.name, error=str(answer))
        raise answer

    concurrency = classifier.concurrency(plan, decoding)
    await ordered_tasks.run(sources, row, put, lambda: concurrency)


def plain(predictions: Iterable[Any]) -> list[dict[str, Any]]:
    """Convert predictions, the service's or the client's, to a row's; faster than `asdict`."""
    return [{name: getattr(p, name) for name in _PREDICTION} for p in predictions]

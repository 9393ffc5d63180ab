"""Images to rows of results, by a classifier of one's own."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from service import cpu_info
from service.errors import ServiceError, TooLarge, UnreadableImage, UnsupportedType
from service.models import store
from service.offline.bulk import ordered_tasks
from service.offline.bulk.image_source import Source
from service.offline.bulk.results_file import Origin, Row
from service.offline.evaluation import PATIENCE
from service.serving.classifier import Classifier
from service.serving.types import Answer
from service.settings import Settings

BAD = (TooLarge, UnsupportedType, UnreadableImage)  # an image's own faults

Put = Callable[[Row], None]

_PREDICTION = ("label", "wnid", "index", "probability")


def expected(settings: Settings) -> Origin:
    """Tell by what images will be named here; raises `ModelError` for a model that is not."""
    version = store.locate(settings.model_store).version(settings.model)
    return Origin(settings.model, version, settings.views)


def origin(classifier: Classifier, settings: Settings) -> Origin:
    """Tell by what a classifier that is ready names images."""
    ensemble = classifier.ensemble
    return Origin(ensemble.name, ensemble.version, settings.views)


async def rank(
    classifier: Classifier, found: Iterator[Source], put: Put, settings: Settings, top_k: int
) -> None:
    """Rank the labels of all that is found, and put a row for each, in their order.

    What is wrong with an image is in its row; raises what is wrong with anything else.
    """
    plan = settings.views
    made = origin(classifier, settings)
    decoding = cpu_info.decoding(settings.decode_threads)

    async def row(source: Source) -> Row:
        try:
            data = await asyncio.to_thread(source.read)
        except ServiceError as error:
            return Row(source.name, error=str(error))
        [answer] = await classifier.classify([data], plan=plan, top_k=top_k, seconds=PATIENCE)
        if isinstance(answer, Answer):
            return Row(source.name, plain(answer.predictions), origin=made)
        if isinstance(answer, BAD):
            return Row(source.name, error=str(answer))
        raise answer

    concurrency = classifier.concurrency(plan, decoding)
    await ordered_tasks.run(found, row, put, lambda: concurrency)


def plain(predictions: Iterable[Any]) -> list[dict[str, Any]]:
    """Give what a row has of predictions, ours or the client's; `asdict` would take longer."""
    return [{name: getattr(one, name) for name in _PREDICTION} for one in predictions]

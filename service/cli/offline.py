"""What commands without a server share: a classifier in this process, and labelled photos."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from service.cli import console
from service.imaging.image_folder import LeftOut
from service.models.manifest import Label
from service.offline import evaluation
from service.offline.evaluation import Photo
from service.serving import factory
from service.serving.classifier import Classifier
from service.settings import Settings

T = TypeVar("T")


def run(settings: Settings, work: Callable[[Classifier], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine with a classifier in this process."""

    async def entered() -> T:
        async with factory.create_served_model(settings) as served_model:
            return await work(await served_model.ready())

    # As in the server: less overhead for messages to and from the worker.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(entered())


def photos(folder: Path, labels: Sequence[Label]) -> list[Photo]:
    """Find the labelled photos of a folder, and print what was left out."""
    left_out = LeftOut()
    labelled = evaluation.find(folder, labels, left_out.add)
    if left_out.sentence:
        console.say(left_out.sentence, stderr=True)
    return labelled

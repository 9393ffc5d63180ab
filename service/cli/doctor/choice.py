"""The models as serve would run them: loaded, and described."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import get_args

from service.cli import console
from service.cli.doctor.finding import Finding, Problem
from service.errors import InferenceFailed, InvalidParameter, ServiceError
from service.imaging import heif
from service.models.ensemble import Ensemble
from service.models.store import BUNDLED, Store
from service.serving.metrics.worker_collector import resident
from service.settings import FixedPlanName, Settings
from service.worker import client

LOAD_SECONDS = 300.0  # of each model, its conversion included


@dataclass(frozen=True, slots=True)
class Choice:
    """A model as serve would run it."""

    ensemble: Ensemble
    executors: int
    nbytes: int  # resident memory of its worker


def choose(settings: Settings, model_store: Store) -> tuple[list[Choice], Finding]:
    """Load the models that are there, else the bundled one, as serve does."""
    there = [name for name in settings.served if all(map(model_store.has, name.split(",")))]
    lines = [] if there else [f"{settings.model} is not there; the bundled model would run so:"]
    chosen: list[Choice] = []
    problems: list[Problem] = []
    for name in there or [BUNDLED]:
        console.say(f"loading {name}", stderr=True)
        try:
            choice = load(settings.model_copy(update={"model": name}))
            chosen.append(choice)
            lines += _described(choice, settings.views)
            problems += unsupported(choice.ensemble, settings.views)
        except (ServiceError, RuntimeError) as error:
            lines.append(f"{name} cannot be loaded")
            problems.append(Problem(str(error), _remedy(error)))
    return chosen, Finding("serve", lines, problems)


def unsupported(ensemble: Ensemble, views: str) -> list[Problem]:
    """Return a problem if a network does not support the default views."""
    try:
        ensemble.plans(views)
    except InvalidParameter as error:
        return [Problem(str(error), "choose other --views")]
    return []


def _remedy(error: Exception) -> str:
    if isinstance(error, InferenceFailed):
        return "read the log above; a worker that was killed needs more memory"
    return "choose another --model, --device or --precision"


def load(settings: Settings, seconds: float = LOAD_SECONDS) -> Choice:
    """Load a model in a worker, and end it; raises what `client.load` does."""
    if settings.heic:
        heif.require()
    cancelled: Future[None] = Future()
    timer = threading.Timer(seconds, cancelled.set_result, [None])
    timer.start()
    try:
        backend = client.load(settings, cancelled)
    except InferenceFailed as error:
        if cancelled.done():
            raise InferenceFailed(f"loading took longer than {seconds:g} s") from error
        raise
    finally:
        timer.cancel()
    try:
        return Choice(backend.ensemble, len(backend.executors), resident(backend.pid))
    finally:
        backend.close()


def _described(choice: Choice, views: str) -> list[str]:
    ensemble = choice.ensemble
    most = max(map(ensemble.costs.largest, ensemble.costs.curves))
    engine = f"{ensemble.name} on {ensemble.device} in {ensemble.precision}"
    executors = f"{choice.executors} executor{'s' if choice.executors > 1 else ''}"
    return [
        f"{engine}: {executors}, batches of up to {most} rows",
        f"inference in ms: {', '.join(_times(ensemble))}",
        f"default views: {views}",
    ]


def _times(ensemble: Ensemble) -> Iterator[str]:
    for plan in get_args(FixedPlanName):
        with suppress(InvalidParameter):
            rows = {spec.key: spec.rows for spec in ensemble.jobs(plan).specs}
            yield f"{plan} {1000 * ensemble.costs.total(rows):.1f}"

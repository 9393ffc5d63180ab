"""The downloads of weights: whether their hosts answer, and which of them serve would begin."""

import threading
from collections.abc import Mapping
from concurrent.futures import Future, wait
from contextlib import suppress

from service.cli.doctor.finding import Finding, Problem
from service.errors import ModelError, Unreachable
from service.models import download, pytorch
from service.models.store import Store
from service.settings import Settings

NETWORK_SECONDS = 3.0  # of all hosts together

Answers = Mapping[str, Future[None]]
"""By host: its answer, or `Unreachable`."""


def ask(model_store: Store) -> Answers:
    """Ask each host of weights for a file, in daemon threads: name servers may be slow."""
    urls = {}
    for name in model_store.names():
        with suppress(ModelError):  # `model_files` reports it
            if source := model_store.manifest(name).source:
                urls[str(source.url.host)] = str(source.url)
    answers: dict[str, Future[None]] = {host: Future() for host in urls}
    for host, url in urls.items():
        threading.Thread(target=_answer, args=[url, answers[host]], daemon=True).start()
    return answers


def _answer(url: str, answer: Future[None]) -> None:
    try:
        download.ask(url, seconds=NETWORK_SECONDS)
    except Unreachable as error:
        answer.set_exception(error)
    else:
        answer.set_result(None)


def network(answers: Answers) -> Finding:
    """Wait for the answers, but not for long."""
    wait(answers.values(), NETWORK_SECONDS)
    lines = [f"{host}: {_failure(answer) or 'reached'}" for host, answer in answers.items()]
    return Finding("network", lines or ["no model has a source"])


def _failure(answer: Future[None]) -> str:
    if not answer.done():
        return f"no answer in {NETWORK_SECONDS:g} s"
    error = answer.exception()
    return f"not reached: {error}" if error else ""


def missing(settings: Settings, model_store: Store, answers: Answers) -> Finding:
    """Tell which models serve would download first, and which it could not."""
    lines, problems = [], []
    for name in dict.fromkeys(",".join(settings.served).split(",")):
        if not model_store.has(name):
            if obstacle := _obstacle(settings, model_store, name, answers):
                problems.append(obstacle)
            else:
                lines.append(f"{name}, before it is served")
    return Finding("download", lines, problems)


def _obstacle(
    settings: Settings, model_store: Store, name: str, answers: Answers
) -> Problem | None:
    try:
        source = model_store.manifest(name).source
    except ModelError as error:
        return Problem(str(error), "choose another --model, or add it to the store")
    absent = f"the weights of {name} are not in {model_store.root}"
    bring = f"googlenet-service models import {name} FILE"
    if source is None:
        return Problem(absent, bring)
    if not settings.download_weights:
        return Problem(absent, f"googlenet-service models fetch {name}")
    if not pytorch.is_installed():
        return Problem(f"{absent}, and fetching them needs PyTorch", pytorch.INSTALL)
    if _failure(answers[str(source.url.host)]):
        remedy = f"bring the file from {source.url}, then: {bring}"
        return Problem(f"{absent}, and {source.url.host} cannot be reached", remedy)
    return None

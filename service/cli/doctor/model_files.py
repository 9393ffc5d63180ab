"""The files of the model store: whether they are there, and whole."""

from collections import defaultdict

from service.cli.doctor.finding import Finding, Problem
from service.errors import BadWeights, ModelError, NotConverted
from service.models import converted_model, pytorch
from service.models.store import FLOATS, INT8, Store


def models(model_store: Store) -> Finding:
    """Read the files of all models, and compare them with their checksums."""
    names, problems = defaultdict(list), []
    for name in model_store.names():
        try:
            state = _state(model_store, name)
        except (ModelError, OSError) as error:  # of the latter: a file may not be read
            state = "broken"
            problems.append(Problem(str(error), _repair(model_store, name, error)))
        names[state].append(name)
    lines = [f"{state}: {', '.join(names[state])}" for state in sorted(names, reverse=True)]
    return Finding("models", [f"in {model_store.root}", *lines], problems)


def _state(model_store: Store, name: str) -> str:
    model_store.labels(name)  # and the manifest
    if not model_store.has(name):
        return "not fetched"
    digest = model_store.verify(name)
    if model_store.has(name, INT8):
        converted_model.read(model_store, name, digest, INT8)
    try:
        converted_model.read(model_store, name, digest)
    except NotConverted:
        if model_store.has(name, FLOATS) and not pytorch.is_installed():
            raise
        return "whole, to be converted"
    return "whole"


def _repair(model_store: Store, name: str, error: Exception) -> str:
    if isinstance(error, OSError):
        return "make it readable for this user"
    if isinstance(error, NotConverted):
        return f"with PyTorch, googlenet-service models convert {name}, or quantize it again"
    if not isinstance(error, BadWeights):
        return f"correct the manifest or the labels of {name}, or delete its folder"
    if model_store.manifest(name).source:
        return f"delete it, then: googlenet-service models fetch {name}"
    return f"googlenet-service models import {name} FILE"

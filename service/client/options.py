"""Keyword options of the client's methods; an option left out has the service's default."""

from typing import TypedDict

Labels = str | list[str | int] | tuple[str | int, ...]
"""Indices, WordNet ids or names; a string has them separated by commas."""


class CallOptions(TypedDict, total=False):
    """Options of every method."""

    timeout: float  # seconds, retries included


class ClassifyOptions(CallOptions, total=False):
    """Options of classification."""

    model: str | None
    views: str | None
    top_k: int | None
    labels: (
        str | list[str | int] | tuple[str | int, ...] | None
    )  # rank these only: classes, or broader labels
    threshold: float | None  # leave out labels that are less probable
    renormalise: bool | None  # divide probabilities by that of all `labels` together
    specificity: float | None  # ask for the most specific label that is as probable
    coverage: float | None  # asks for a set of labels that holds the true one so often
    background: bool  # low priority: other requests go first


class EmbedOptions(CallOptions, total=False):
    """Options of features."""

    model: str | None
    views: str | None
    normalise: bool | None  # divide the features by their Euclidean norm
    background: bool  # low priority: other requests go first


class ExplainOptions(CallOptions, total=False):
    """Options of an explanation: the label to explain, by its WordNet id, name or index."""

    label: str | int | None
    model: str | None
    views: str | None

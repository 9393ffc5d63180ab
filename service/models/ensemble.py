"""Ensembles: the loaded models, and the averages of their results.

Probabilities, not logits, are averaged: over an image's views, then over the members
(section 7 of the paper).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from service.errors import InvalidParameter, NoFeatures, UnknownLabel
from service.imaging import crops
from service.imaging.activation_map import Activation
from service.imaging.crops import Plan, Resize
from service.models.label_tree import LabelTree
from service.models.manifest import Label, LabelSets, Reference
from service.models.stopping_rule import (
    LEAD,
    STANDARD_ERRORS,
    LeadRule,
    PairedRule,
    StoppingRule,
)
from service.scheduling.cost_model import CostModel, Key
from service.scheduling.types import JobSpec

Probabilities = npt.NDArray[np.float64]  # (classes,)

Features = npt.NDArray[np.float32]  # (channels,)

ByView = npt.NDArray[np.float32]  # (views, classes)

Result = Probabilities | ByView | Activation
"""The result of a slice: summed probabilities, or a map if its key has `maps`.

Those of a plan with stops are not summed. Summed features follow the probabilities if the slice's
image asks for them: (classes + channels,).
"""


@dataclass(frozen=True, slots=True)
class Member:
    """A model of an ensemble."""

    name: str
    version: str
    architecture: str
    sha256: str
    resize: Resize
    mirrors: bool = True
    notice: str | None = None
    channels: int = 0  # of its features; without, it has no class activation maps either
    sides: Sequence[int] = crops.SIDES  # supported view sizes in pixels
    lead: float = LEAD  # of the stopping rule
    standard_errors: float = STANDARD_ERRORS  # of the paired one
    label_sets: LabelSets | None = None
    references: Mapping[str, Reference] = field(default_factory=dict)  # by view plan


@dataclass(frozen=True, slots=True)
class Prediction:
    """A label, its probability, and its class index."""

    label: str
    wnid: str | None
    index: int
    probability: float


@dataclass(frozen=True)  # without slots: `tree` is kept in its `__dict__`
class Ensemble:
    """Models that are loaded, warmed up and measured."""

    members: tuple[Member, ...]
    labels: tuple[Label, ...]
    costs: CostModel
    device: str
    precision: str
    warmup_seconds: float
    key: str = field(default_factory=lambda: uuid4().hex, repr=False, compare=False)  # of this load

    @property
    def name(self) -> str:
        """The members' names, as `--model` takes them."""
        return ",".join(member.name for member in self.members)

    @property
    def version(self) -> str:
        """The members' versions, joined in the same way."""
        return ",".join(member.version for member in self.members)

    @property
    def notice(self) -> str | None:
        """The notices that every response carries."""
        return " ".join(member.notice for member in self.members if member.notice) or None

    @cached_property
    def tree(self) -> LabelTree:
        """The tree of its labels, built when it is first asked for."""
        return LabelTree.of(self.labels)

    def stopping_rule(self, plan: str) -> StoppingRule:
        """Return when the views of a plan stop; of several members, by the strictest rule.

        At the same agreement, a lead takes more of `paper`'s views than the paired rule.
        """
        if plan == "adaptive:paper":
            return PairedRule(max(member.standard_errors for member in self.members))
        return LeadRule(max(member.lead for member in self.members))

    @property
    def label_sets(self) -> LabelSets | None:
        """The label sets of a single model that is calibrated; several are not as a whole."""
        return self.members[0].label_sets if len(self.members) == 1 else None

    @property
    def references(self) -> Mapping[str, Reference]:
        """The references of a single model by view plan; several have none as a whole."""
        return self.members[0].references if len(self.members) == 1 else {}

    def plans(self, name: str) -> tuple[Plan, ...]:
        """Return each member's view plan of this name.

        Raises `InvalidParameter` if a network does not support the size of its views.
        """
        plans = tuple(crops.plan(name, m.resize, mirrors=m.mirrors) for m in self.members)
        for member, plan in zip(self.members, plans, strict=True):
            if plan.side not in member.sides:
                raise InvalidParameter(
                    f"{member.name} takes views of {crops.CROP} pixels only, and those of "
                    f"`{name}` have {plan.side}; ask for others"
                )
        return plans

    def specs(
        self, plans: Sequence[Plan], *, itemsize: int = 1, maps: bool = False
    ) -> list[JobSpec]:
        """Return one image's jobs, one per member.

        `itemsize` is the bytes of a pixel value.
        """
        return [
            JobSpec(Key(number, plan.side, maps), len(plan.views), plan.nbytes * itemsize)
            for number, plan in enumerate(plans)
        ]

    def jobs(self, name: str) -> "ViewJobs":
        """Return one image's jobs for the view plan of this name; raises what `plans` does."""
        plans = self.plans(name)
        specs, maps = self.specs(plans), self.specs(plans, maps=True)
        return ViewJobs(plans, (*specs,), (*maps,), self.stopping_rule(name))

    @property
    def channels(self) -> int:
        """The number of its features: only a single model can have them, else 0."""
        return self.members[0].channels if len(self.members) == 1 else 0

    @property
    def explains(self) -> bool:
        """Whether it has class activation maps: models that have features do."""
        return self.channels > 0

    def check_features(self) -> None:
        """Raise `NoFeatures` unless it is a single model that has features."""
        if len(self.members) > 1:
            raise NoFeatures(f"{self.name} are several models; ask a single one for features")
        if not self.explains:
            raise NoFeatures(f"{self.name} has no features; use another model")

    def split(
        self, average: Probabilities, *, features: bool
    ) -> tuple[Probabilities, Features | None]:
        """Split the mean of an image's results into probabilities and features, if it has those."""
        if not features:
            return average, None
        classes = len(self.labels)
        return average[:classes].copy(), average[classes:].astype(np.float32)

    def find(self, label: str) -> int:
        """Find a class by index, WordNet id, or unique name.

        Raises `UnknownLabel`.
        """
        if label.isdecimal() and int(label) < len(self.labels):
            return int(label)
        matches = [i for i, known in enumerate(self.labels) if label in {known.wnid, known.name}]
        if len(matches) != 1:
            raise UnknownLabel(f"{self.name} has no class {label!r}, or several")
        return matches[0]

    def rank(
        self, results: Sequence[Sequence[Probabilities]], plans: Sequence[Plan], top_k: int
    ) -> tuple[Prediction, ...]:
        """Average an image's results, by member, and return its `top_k` predictions."""
        return self.best(mean(results, [len(plan.views) for plan in plans]), top_k)

    def best(self, probabilities: Probabilities, top_k: int) -> tuple[Prediction, ...]:
        """Return the `top_k` most probable labels."""
        return tuple(
            Prediction(self.labels[i].name, self.labels[i].wnid, i, float(probabilities[i]))
            for i in _largest(probabilities, top_k)
        )


@dataclass(frozen=True, slots=True)
class ViewJobs:
    """One image's plans and jobs, one for each member."""

    plans: tuple[Plan, ...]
    specs: tuple[JobSpec, ...]
    maps: tuple[JobSpec, ...]  # for class activation maps
    rule: StoppingRule

    @property
    def has_stops(self) -> bool:
        """Whether looking may end before all views."""
        return any(plan.stops for plan in self.plans)


def mean(
    results: Sequence[Sequence[Probabilities | ByView]], counts: Sequence[int]
) -> Probabilities:
    """Average an image's results over views, of which each member has a count, then over members.

    A result is of some of the views: their sum, (classes,), as is what is returned, or by view.
    """
    by_member = [
        reduce(np.add, map(_summed, parts)) / count
        for parts, count in zip(results, counts, strict=True)
    ]
    average: Probabilities = reduce(np.add, by_member) / len(by_member)
    return average


def _summed(part: Probabilities | ByView) -> Probabilities:
    """Sum a result up over its views, if it is by view: (classes,)."""
    if part.ndim == 1:
        return part.astype(np.float64, copy=False)
    total: Probabilities = part.sum(axis=0, dtype=np.float64)
    return total


def _largest(values: Probabilities, count: int) -> Sequence[int]:
    """Return the indices of the largest values, largest first; ties by index."""
    if count < len(values):
        threshold = np.partition(values, -count)[-count]
        indices = np.flatnonzero(values >= threshold)
    else:
        indices = np.arange(len(values))
    order: list[int] = indices[np.argsort(-values[indices], kind="stable")][:count].tolist()
    return order

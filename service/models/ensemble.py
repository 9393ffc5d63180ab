"""Members and views to rankings: what is served, and the averages it answers with.

Probabilities, not logits, are averaged: over an image's views, then over the members
(section 7 of the paper).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import numpy.typing as npt

from service.errors import InvalidParameter, UnknownLabel
from service.imaging import crops
from service.imaging.activation_map import Activation
from service.imaging.crops import Plan, Resize
from service.models.manifest import Label
from service.scheduling.cost_model import CostModel, Key
from service.scheduling.types import JobSpec

Probabilities = npt.NDArray[np.float64]  # (classes,)

Result = Probabilities | Activation
"""What comes of a slice; the second if its key wants maps."""


@dataclass(frozen=True, slots=True)
class Member:
    """What is to be known about one of the averaged models."""

    name: str
    version: str
    architecture: str
    sha256: str
    resize: Resize
    mirrors: bool = True
    notice: str | None = None
    explains: bool = False  # has it class activation maps
    sides: Sequence[int] = crops.SIDES  # pixels of the views that its network takes


@dataclass(frozen=True, slots=True)
class Prediction:
    """A label and how probable it is; `index` is its place among the classes."""

    label: str
    wnid: str | None
    index: int
    probability: float


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Models that are loaded, warmed and timed."""

    members: tuple[Member, ...]
    labels: tuple[Label, ...]
    costs: CostModel
    device: str
    precision: str
    warmup_seconds: float

    @property
    def name(self) -> str:
        """The members' names, as `--model` takes them."""
        return ",".join(member.name for member in self.members)

    @property
    def version(self) -> str:
        """The members' versions, in the same way."""
        return ",".join(member.version for member in self.members)

    @property
    def notice(self) -> str | None:
        """What every answer has to say of the members."""
        return " ".join(member.notice for member in self.members if member.notice) or None

    def plans(self, name: str) -> tuple[Plan, ...]:
        """Give each member's plan of the views called `name`.

        Raises `InvalidParameter` if they are larger than one of the networks takes.
        """
        made = tuple(crops.plan(name, m.resize, mirrors=m.mirrors) for m in self.members)
        for member, plan in zip(self.members, made, strict=True):
            if plan.side not in member.sides:
                raise InvalidParameter(
                    f"{member.name} takes views of {crops.CROP} pixels only, and those of "
                    f"`{name}` have {plan.side}; ask for others"
                )
        return made

    def specs(
        self, plans: Sequence[Plan], *, itemsize: int = 1, maps: bool = False
    ) -> list[JobSpec]:
        """Say what one image will bring: a job for each member.

        A value of its pixels has `itemsize` bytes.
        """
        return [
            JobSpec(Key(number, plan.side, maps), len(plan.views), plan.nbytes * itemsize)
            for number, plan in enumerate(plans)
        ]

    @property
    def explains(self) -> bool:
        """Are there class activation maps; an average of several models has none of its own."""
        return len(self.members) == 1 and self.members[0].explains

    def find(self, label: str) -> int:
        """Find the class of an index, a WordNet id, or a name that only one class has.

        Raises `UnknownLabel`.
        """
        if label.isdecimal() and int(label) < len(self.labels):
            return int(label)
        found = [at for at, one in enumerate(self.labels) if label in {one.wnid, one.name}]
        if len(found) != 1:
            raise UnknownLabel(f"{self.name} has no class {label!r}, or several")
        return found[0]

    def rank(
        self, results: Sequence[Sequence[Probabilities]], plans: Sequence[Plan], top_k: int
    ) -> tuple[Prediction, ...]:
        """Average an image's results, by member, and give the `top_k` most probable labels."""
        return self.best(mean(results, plans), top_k)

    def best(self, probabilities: Probabilities, top_k: int) -> tuple[Prediction, ...]:
        """Give the `top_k` most probable labels."""
        return tuple(
            Prediction(self.labels[i].name, self.labels[i].wnid, i, float(probabilities[i]))
            for i in _most(probabilities, top_k)
        )


def mean(results: Sequence[Sequence[Probabilities]], plans: Sequence[Plan]) -> Probabilities:
    """Average an image's results, by member."""
    by_member = [
        reduce(np.add, parts) / len(plan.views) for parts, plan in zip(results, plans, strict=True)
    ]
    average: Probabilities = reduce(np.add, by_member) / len(by_member)
    return average


def _most(values: Probabilities, count: int) -> Sequence[int]:
    """Give the places of the largest values in order, the first place first of equals."""
    if count < len(values):
        least = np.partition(values, -count)[-count]
        places = np.flatnonzero(values >= least)
    else:
        places = np.arange(len(values))
    order: list[int] = places[np.argsort(-values[places], kind="stable")][:count].tolist()
    return order

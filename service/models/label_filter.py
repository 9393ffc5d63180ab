"""The filter of a ranking: which labels it has, and of what their probabilities are shares."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np

from service.models.ensemble import Ensemble, Prediction, Probabilities


@dataclass(frozen=True, slots=True)
class LabelFilter:
    """Keeps the labels of some classes that are as probable as `threshold`, 0 to 1, or more."""

    classes: tuple[int, ...]
    threshold: float = 0.0
    renormalise: bool = False  # divide by the probability of `classes` together

    @classmethod
    def of(
        cls, ensemble: Ensemble, names: Iterable[str], *, threshold: float, renormalise: bool
    ) -> Self:
        """Find the classes by their names, all without any; raises what `LabelTree.find` does."""
        named = frozenset[int]().union(*(ensemble.tree.find(name) for name in names))
        classes = sorted(named) or range(len(ensemble.labels))
        return cls(tuple(classes), threshold, renormalise)

    def rank(
        self, ensemble: Ensemble, probabilities: Probabilities, top_k: int
    ) -> tuple[Prediction, ...]:
        """Return at most `top_k` predictions, most probable first; none may be left.

        `probabilities` are those of all classes, (classes,).
        """
        own = probabilities[[*self.classes]]
        total = own.sum() if self.renormalise else 1.0
        kept = np.full_like(probabilities, -1.0)  # below every threshold
        kept[[*self.classes]] = own / total if total else own
        ranking = ensemble.best(kept, top_k)
        return tuple(one for one in ranking if one.probability >= self.threshold)

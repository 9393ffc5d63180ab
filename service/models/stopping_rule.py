"""When the mean of an image's first views is sure enough to look at no more of them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LEAD = 0.5
"""The default lead. On 1,000 photos of ImageNet's validation set, with bvlc_googlenet and stops
after 1, 2 and 6 of ten views, it looks at 3.8 views on average, and 99.8 % of the first labels are
those of all ten."""


@dataclass(frozen=True, slots=True)
class StoppingRule:
    """Stop when the most probable label leads the second by at least `lead`, from 0 to 1."""

    lead: float = LEAD

    def is_sure(self, probabilities: npt.NDArray[np.floating]) -> bool:
        """Tell whether the mean probabilities of the views so far, (classes,), are sure enough."""
        return bool(leads(probabilities) >= self.lead)


def leads(probabilities: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Return by how much the first label leads the second: of (..., classes), the shape (...).

    A single class leads by infinity.
    """
    if probabilities.shape[-1] == 1:
        return np.full(probabilities.shape[:-1], np.inf)
    ordered = np.partition(probabilities, -2)
    lead: npt.NDArray[np.floating] = ordered[..., -1] - ordered[..., -2]
    return lead

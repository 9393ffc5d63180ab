"""When the mean of an image's first views is sure enough to look at no more of them."""

from dataclasses import dataclass

import numpy as np

from service.models.ensemble import Probabilities

LEAD = 0.5
"""The default lead. On 1,000 photos of ImageNet's validation set, with bvlc_googlenet and stops
after 1, 2 and 6 of ten views, it looks at 3.8 views on average, and 99.8 % of the first labels are
those of all ten."""


@dataclass(frozen=True, slots=True)
class StoppingRule:
    """Stop when the most probable label leads the second by at least `lead`, from 0 to 1."""

    lead: float = LEAD

    def is_sure(self, probabilities: Probabilities) -> bool:
        """Tell whether the mean probabilities of the views so far, (classes,), are sure enough."""
        if len(probabilities) == 1:
            return True
        second, first = np.partition(probabilities, -2)[-2:]
        return bool(first - second >= self.lead)

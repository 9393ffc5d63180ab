"""The bootstrap: how far a mean over images might be from that over all such images.

Efron 1979, "Bootstrap Methods: Another Look at the Jackknife". As many images as there are
are drawn from them, with repetition, again and again; the interval holds the middle of the means
(the percentile method).
"""

import numpy as np
import numpy.typing as npt

SHARE = 0.95  # of the means that an interval holds
SAMPLES = 10_000
SEED = 0  # the same images have the same interval


def interval(values: npt.NDArray[np.floating]) -> tuple[float, float]:
    """Give the interval of the mean of a value for each image, (images,).

    Where the values are differences between two ways to classify the same images, it is a
    paired comparison. How often each different value is drawn is multinomial, so that it costs
    the same for many images as for few.
    """
    different, counts = np.unique(values, return_counts=True)
    drawn = np.random.default_rng(SEED).multinomial(len(values), counts / len(values), SAMPLES)
    means = drawn @ different / len(values)
    low, high = np.quantile(means, [(1 - SHARE) / 2, (1 + SHARE) / 2])
    return float(low), float(high)

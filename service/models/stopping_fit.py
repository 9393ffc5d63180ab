"""The stopping rule's lead, fitted to how often fewer views have the first label of all of them."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from service.models.manifest import Stopping
from service.models.stopping_rule import LEAD, leads

GRID = tuple(round(0.05 * step, 2) for step in range(1, 20))
ALL_VIEWS = 2.0  # a lead that no label has
CONFIDENCE = 0.95  # of the claim that a lead below the default is enough

Means = npt.NDArray[np.floating]  # (images, stages, classes): probabilities after each stage


def fit(means: Means, ends: Sequence[int], agreement: float) -> Stopping:
    """Fit the smallest lead whose first labels are those of all views on enough of the images.

    `means` are of held-out images after each stage, `ends` the views looked at by then;
    `agreement`, from 0 to below 1, is the share of images with the first label of all views. Leads
    are tried from the largest down until one has less agreement on these images. A lead below the
    default also has to show, by an exact binomial test with `CONFIDENCE`, that its agreement on
    other images is not less: without a difference that takes 598 images for 99.5 %. Fewer images
    can therefore raise the lead, but not lower it. The leads are tested in a fixed order, up to
    the first that fails, so their number needs no correction (Angelopoulos et al., "Learn then
    Test", arXiv 2110.01052, section 3.3).
    """
    lead = ALL_VIEWS
    for candidate in reversed(GRID):
        different = differences(means, candidate)
        if different > (1 - agreement) * len(means) + 1e-9:
            break
        if candidate < LEAD and not is_shown(different, len(means), agreement):
            break
        lead = candidate
    return Stopping(
        lead=lead,
        agreement=agreement,
        differences=differences(means, lead),
        views=round(float(np.take(ends, stages(means, lead)).mean()), 2),
    )


def stages(means: Means, lead: float) -> npt.NDArray[np.intp]:
    """Return the stage, from 0, with which the rule ends for each image: (images,)."""
    is_sure = leads(means) >= lead
    is_sure[:, -1] = True
    last: npt.NDArray[np.intp] = is_sure.argmax(1)
    return last


def looked(means: Means, lead: float) -> npt.NDArray[np.floating]:
    """Return each image's probabilities when the rule ends: (images, classes)."""
    ended: npt.NDArray[np.floating] = means[np.arange(len(means)), stages(means, lead)]
    return ended


def differences(means: Means, lead: float) -> int:
    """Count the images whose first label is not that of all views."""
    return int((looked(means, lead).argmax(1) != means[:, -1].argmax(1)).sum())


def is_shown(different: int, images: int, agreement: float) -> bool:
    """Tell whether so few differences are improbable at any lower agreement.

    It is Clopper and Pearson's one-sided bound (1934): the lower end of the interval for the
    agreement is at least `agreement`.
    """
    miss = 1 - agreement
    chance = sum(
        math.exp(
            math.lgamma(images + 1) - math.lgamma(count + 1) - math.lgamma(images - count + 1)
            + count * math.log(miss) + (images - count) * math.log(agreement)
        )
        for count in range(different + 1)
    )  # fmt: skip
    return chance <= 1 - CONFIDENCE


def sentence(stopping: Stopping) -> str:
    """Describe a fitted lead in one sentence."""
    rule = (
        "views=adaptive looks at all views"
        if stopping.lead == ALL_VIEWS
        else f"views=adaptive stops at a lead of {stopping.lead:g}, after {stopping.views:g} views"
        " on average"
    )
    kept = (
        f"; to stop earlier takes more images, which show that {100 * stopping.agreement:g} % have"
        " the first label of all views"
        if stopping.lead == LEAD
        else ""
    )
    return f"{rule}: {stopping.differences} images have another first label than by all{kept}"

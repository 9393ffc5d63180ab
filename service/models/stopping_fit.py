"""The stopping rules, fitted to how often fewer views have the first label of all of them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from service.models.manifest import PairedStopping, Stopping
from service.models.stopping_rule import LEAD, STANDARD_ERRORS, certainty, leads

GRID = tuple(round(0.05 * step, 2) for step in range(1, 20))
ALL_VIEWS = 2.0  # a lead that no label has
ERRORS = tuple(0.5 * step for step in range(1, 21))
ALL_ERRORS = 1000.0  # more than labels lead by, unless their views are the same
CONFIDENCE = 0.95  # of the claim that less than the default is enough

Means = npt.NDArray[np.floating]  # (images, stages, classes): probabilities after each stage


@dataclass(frozen=True, slots=True)
class Looks:
    """What is known of images after each stage: by how much a label is first, and which one."""

    margins: npt.NDArray[np.floating]  # (images, stages): leads, or standard errors of them
    labels: npt.NDArray[np.intp]  # (images, stages)
    ends: Sequence[int]  # views looked at by the end of each stage

    def stages(self, threshold: float) -> npt.NDArray[np.intp]:
        """Return the stage, from 0, after which each image's margin is enough: (images,)."""
        is_sure = self.margins >= threshold
        is_sure[:, -1] = True
        last: npt.NDArray[np.intp] = is_sure.argmax(1)
        return last

    def differences(self, threshold: float) -> int:
        """Count the images whose first label is not that of all views."""
        images = np.arange(len(self.labels))
        return int((self.labels[images, self.stages(threshold)] != self.labels[:, -1]).sum())

    def kept(self, threshold: float, agreement: float) -> dict[str, Any]:
        """Return what a manifest says of a threshold besides itself."""
        views = np.take(self.ends, self.stages(threshold)).mean()
        return {
            "agreement": agreement,
            "differences": self.differences(threshold),
            "views": round(float(views), 2),
        }


def of_leads(means: Means, ends: Sequence[int]) -> Looks:
    """Look at images' means after each stage, for `LeadRule`."""
    return Looks(leads(means), means.argmax(2), ends)


def of_pairs(images: Iterable[npt.NDArray[np.floating]], ends: Sequence[int]) -> Looks:
    """Look at images' probabilities by view, (views, classes) of each, for `PairedRule`."""
    margins, labels = [], []
    for views in images:
        means = [views[:end].mean(0) for end in ends]
        pairs = zip(means, ends, strict=True)
        margins.append([certainty(mean, [views[:end]]) for mean, end in pairs])
        labels.append([int(mean.argmax()) for mean in means])
    return Looks(np.array(margins), np.array(labels), ends)


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
    looks = of_leads(means, ends)
    lead = _smallest(looks, agreement, (ALL_VIEWS, *reversed(GRID)), LEAD)
    return Stopping(lead=lead, **looks.kept(lead, agreement))


def fit_paired(looks: Looks, agreement: float) -> PairedStopping:
    """Fit the smallest number of standard errors in the same way."""
    errors = _smallest(looks, agreement, (ALL_ERRORS, *reversed(ERRORS)), STANDARD_ERRORS)
    return PairedStopping(standard_errors=errors, **looks.kept(errors, agreement))


def _smallest(looks: Looks, agreement: float, thresholds: Sequence[float], default: float) -> float:
    """Return the last threshold, of descending ones, before the first without agreement."""
    images, smallest = len(looks.labels), thresholds[0]
    for threshold in thresholds[1:]:
        different = looks.differences(threshold)
        if different > (1 - agreement) * images + 1e-9:
            break
        if threshold < default and not is_shown(different, images, agreement):
            break
        smallest = threshold
    return smallest


def looked(means: Means, lead: float) -> npt.NDArray[np.floating]:
    """Return each image's probabilities when looking ends: (images, classes)."""
    stages = of_leads(means, ()).stages(lead)
    ended: npt.NDArray[np.floating] = means[np.arange(len(means)), stages]
    return ended


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


def sentence(fitted: Stopping | PairedStopping) -> str:
    """Describe a fitted rule in one sentence."""
    if isinstance(fitted, Stopping):
        views, stop = "adaptive", f"a lead of {fitted.lead:g}"
        is_all, is_default = fitted.lead == ALL_VIEWS, fitted.lead == LEAD
    else:
        errors = fitted.standard_errors
        views, stop = "adaptive:paper", f"a lead of {errors:g} standard errors"
        is_all, is_default = errors == ALL_ERRORS, errors == STANDARD_ERRORS
    rule = f"stops at {stop}, after {fitted.views:g} views on average"
    kept = (
        f"; to stop earlier takes more images, which show that {100 * fitted.agreement:g} % have"
        " the first label of all views"
        if is_default
        else ""
    )
    return (
        f"views={views} {'looks at all views' if is_all else rule}: {fitted.differences} images"
        f" have another first label than by all{kept}"
    )

"""The stopping rule's lead, fitted to images."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.models import calibration, stopping_fit
from service.models.manifest import PairedStopping, Stopping
from service.models.stopping_fit import ALL_ERRORS, ALL_VIEWS, ERRORS, GRID
from service.models.stopping_rule import LEAD, STANDARD_ERRORS, LeadRule, PairedRule

ENDS = (1, 2, 6, 10)


def drawn(seed: int, images: int, noise: float) -> np.ndarray:
    """Means after each stage: views of the same logits, each with noise of its own."""
    views = drawn_views(seed, images, noise, ENDS[-1])
    return np.stack([views[:, :end].mean(1) for end in ENDS], axis=1)


def drawn_views(seed: int, images: int, noise: float, count: int) -> np.ndarray:
    """Probabilities of so many views."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (images, 1, 5)) + random.normal(0, noise, (images, count, 5))
    return calibration.softmax(logits.reshape(-1, 5)).reshape(logits.shape)


def constant(images: int, *firsts: float) -> np.ndarray:
    """Means of two classes, with the first one's probability after each stage."""
    return np.tile([[first, 1 - first] for first in firsts], (images, 1, 1))


seeds, counts = st.integers(0, 2**32 - 1), st.integers(100, 1500)
agreements = st.sampled_from([0.5, 0.9, 0.95, 0.99, 0.995, 0.999])


@settings(max_examples=50, deadline=None)
@given(seeds, counts, st.floats(0.1, 3), agreements)
def test_disagreement_is_never_above_what_was_asked(
    seed: int, images: int, noise: float, agreement: float
) -> None:
    means = drawn(seed, images, noise)
    fitted = stopping_fit.fit(means, ENDS, agreement)
    rule = LeadRule(fitted.lead)
    labels, views = [], []
    for image in means:  # as the service does it
        stage = next((n for n in range(3) if rule.is_sure(image[n])), 3)
        labels.append(image[stage].argmax())
        views.append(ENDS[stage])
    different = int((labels != means[:, -1].argmax(1)).sum())
    assert different == fitted.differences
    assert different <= (1 - agreement) * images + 1e-9
    assert np.mean(views) == pytest.approx(fitted.views, abs=0.006)


@settings(max_examples=50, deadline=None)
@given(seeds, counts, st.floats(0.1, 3), agreements)
def test_a_lead_below_the_default_is_shown_to_be_enough(
    seed: int, images: int, noise: float, agreement: float
) -> None:
    fitted = stopping_fit.fit(drawn(seed, images, noise), ENDS, agreement)
    assert fitted.lead in {*GRID, ALL_VIEWS}
    if fitted.lead < LEAD:
        assert stopping_fit.is_shown(fitted.differences, images, agreement)


@pytest.mark.parametrize(("images", "lead"), [(100, LEAD), (597, LEAD), (598, GRID[0])])
def test_few_images_do_not_lower_the_lead(images: int, lead: float) -> None:
    """All views have the same first label, which 597 images do not show of 99.5 %."""
    assert stopping_fit.fit(constant(images, *[0.9] * 4), ENDS, 0.995).lead == lead


def test_few_images_raise_the_lead() -> None:
    """One in 100 changes its label after a lead of 0.66, which is more than 0.5 %."""
    means = np.concatenate([constant(99, *[0.9] * 4), constant(1, 0.83, 0.6, 0.4, 0.3)])
    fitted = stopping_fit.fit(means, ENDS, 0.995)
    assert fitted == Stopping(lead=0.7, agreement=0.995, differences=0, views=1.09)
    assert stopping_fit.fit(means, ENDS, 0.99).lead == LEAD


def test_where_no_lead_is_enough_all_views_are_looked_at() -> None:
    fitted = stopping_fit.fit(constant(100, 0.99, 0.9, 0.4, 0.3), ENDS, 0.9)
    assert fitted == Stopping(lead=ALL_VIEWS, agreement=0.9, differences=0, views=10)
    assert not LeadRule(fitted.lead).is_sure(np.array([1.0, 0.0]))


def test_a_single_class_needs_one_view() -> None:
    fitted = stopping_fit.fit(np.ones((598, 4, 1)), ENDS, 0.995)
    assert (fitted.differences, fitted.views) == (0, 1)


@pytest.mark.parametrize(
    ("different", "images", "agreement", "is_shown"),
    [
        (0, 598, 0.995, True),
        (0, 597, 0.995, False),
        (1, 598, 0.995, False),
        (0, 59, 0.95, True),
        (0, 58, 0.95, False),
        (4, 181, 0.95, True),  # of tables of the binomial distribution
        (4, 180, 0.95, False),
    ],
)
def test_the_claim_is_an_exact_binomial_test(
    different: int, images: int, agreement: float, *, is_shown: bool
) -> None:
    assert stopping_fit.is_shown(different, images, agreement) is is_shown


def test_a_claim_about_other_images_is_rarely_wrong() -> None:
    """Of leads below the default at most 5 % miss the agreement on the population."""
    wrong = 0
    for seed in range(100):
        means = drawn(seed, 6000, 1.0)
        fitted = stopping_fit.fit(means[:1000], ENDS, 0.95)
        others = stopping_fit.of_leads(means[1000:], ENDS).differences(fitted.lead) / 5000
        wrong += fitted.lead < LEAD and others > 0.05
    assert wrong <= 11  # by the binomial distribution, once in 100 times if it were 5 %


def paired(standard_errors: float) -> PairedStopping:
    return PairedStopping(standard_errors=standard_errors, agreement=0.9, differences=0, views=9.0)


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(100, 700), st.floats(0.1, 3), agreements)
def test_standard_errors_are_fitted_as_leads_are(
    seed: int, images: int, noise: float, agreement: float
) -> None:
    ends = (4, 8, 16, 32)
    views = drawn_views(seed, images, noise, ends[-1])
    fitted = stopping_fit.fit_paired(stopping_fit.of_pairs(views, ends), agreement)
    assert fitted.standard_errors in {*ERRORS, ALL_ERRORS}
    rule = PairedRule(fitted.standard_errors)
    looked_at, different = [], 0
    for image in views:  # as the service does it
        seen = [image[:end] for end in ends]
        stage = next((n for n in range(3) if rule.is_sure(seen[n].mean(0), [seen[n]])), 3)
        different += seen[stage].mean(0).argmax() != image.mean(0).argmax()
        looked_at.append(ends[stage])
    assert different == fitted.differences <= (1 - agreement) * images + 1e-9
    assert np.mean(looked_at) == pytest.approx(fitted.views, abs=0.006)
    if fitted.standard_errors < STANDARD_ERRORS:
        assert stopping_fit.is_shown(different, images, agreement)


@pytest.mark.parametrize(("images", "errors"), [(597, STANDARD_ERRORS), (598, ERRORS[0])])
def test_few_images_do_not_lower_the_standard_errors(images: int, errors: float) -> None:
    same = np.tile([0.9, 0.1], (images, 8, 1))
    fitted = stopping_fit.fit_paired(stopping_fit.of_pairs(same, (4, 8)), 0.995)
    assert (fitted.standard_errors, fitted.views) == (errors, 4)


@pytest.mark.parametrize(
    ("stopping", "words"),
    [
        (Stopping(lead=ALL_VIEWS, agreement=0.9, differences=0, views=10), "looks at all views"),
        (Stopping(lead=0.3, agreement=0.9, differences=2, views=2.5), "after 2.5 views on average"),
        (Stopping(lead=LEAD, agreement=0.995, differences=0, views=3), "takes more images, which"),
        (paired(ALL_ERRORS), "views=adaptive:paper looks at all views"),
        (
            paired(STANDARD_ERRORS),
            "a lead of 3 standard errors, after 9 views on average: 0 images",
        ),
    ],
)
def test_a_fit_is_described(stopping: Stopping | PairedStopping, words: str) -> None:
    assert words in stopping_fit.sentence(stopping)

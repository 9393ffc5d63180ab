"""What is known of an ensemble: what an image will bring, and the ranking of what it brought."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from conftest import fake_backend

from service.imaging import crops
from service.imaging.crops import CROP, DENSE, Resize
from service.models.ensemble import Prediction
from service.models.manifest import Label
from service.scheduling.cost_model import Key
from service.scheduling.types import JobSpec


def test_an_ensemble_is_named_after_its_members() -> None:
    assert fake_backend(members=2).ensemble.name == "fake0,fake1"


def test_members_have_the_plan_of_their_own_way_to_resize() -> None:
    ensemble = fake_backend(members=2).ensemble
    one, other = ensemble.members
    short = Resize("short", 256)
    resized = replace(ensemble, members=(one, replace(other, resize=short)))
    assert resized.plans("ten") == (crops.plan("ten", one.resize), crops.plan("ten", short))


def test_a_image_demands_a_job_of_each_member() -> None:
    served = fake_backend(members=2).ensemble
    plans = served.plans("ten")
    assert served.specs(plans) == [
        JobSpec(Key(0, CROP), 10, 3 * 256**2),
        JobSpec(Key(1, CROP), 10, 3 * 256**2),
    ]
    (first, _) = served.specs(served.plans("dense"))
    assert first == JobSpec(Key(0, DENSE), 2, 3 * DENSE**2)


# Ranking.


def ranked(probabilities: Sequence[float], top_k: int) -> list[tuple[str, float]]:
    served = fake_backend().ensemble
    results = [[np.array(probabilities)]]
    ranking = served.rank(results, served.plans("single"), top_k)
    assert all(served.labels[p.index].name == p.label for p in ranking)
    return [(prediction.label, prediction.probability) for prediction in ranking]


def test_the_most_probable_label_is_first() -> None:
    assert ranked([0.2, 0.7, 0.1], 3) == [("green", 0.7), ("red", 0.2), ("blue", 0.1)]


def test_no_more_labels_are_given_than_asked_for() -> None:
    assert ranked([0.2, 0.7, 0.1], 1) == [("green", 0.7)]


def test_no_more_labels_are_given_than_there_are() -> None:
    assert len(ranked([0.2, 0.7, 0.1], 1000)) == 3


def test_equals_are_ranked_in_the_order_of_the_classes() -> None:
    assert [label for label, _ in ranked([0.3, 0.4, 0.3], 3)] == ["green", "red", "blue"]
    assert [label for label, _ in ranked([0.2, 0.2, 0.2], 3)] == ["red", "green", "blue"]


def test_a_label_is_given_with_what_is_known_of_it() -> None:
    labels = (Label(name="cat", wnid="n01"), Label(name="dog", wnid=None))
    ensemble = replace(fake_backend().ensemble, labels=labels)
    results, plans = [[np.array([0.25, 0.75])]], ensemble.plans("single")
    assert ensemble.rank(results, plans, 2) == (
        Prediction("dog", None, 1, 0.75),
        Prediction("cat", "n01", 0, 0.25),
    )


def test_views_are_averaged_however_they_were_sliced_and_then_the_members() -> None:
    ensemble = fake_backend(members=2).ensemble
    plans = (ensemble.plans("ten")[0], ensemble.plans("single")[1])
    ten = [np.array([4.0, 2.0, 1.0]), np.array([1.0, 1.0, 1.0])]  # sums of seven and three views
    single = [np.array([0.1, 0.2, 0.7])]
    ranking = ensemble.rank([ten, single], plans, 3)
    assert [prediction.label for prediction in ranking] == ["blue", "red", "green"]
    means = [prediction.probability for prediction in ranking]
    assert means == pytest.approx([(0.2 + 0.7) / 2, (0.5 + 0.1) / 2, (0.3 + 0.2) / 2])

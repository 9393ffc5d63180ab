"""Ensembles: plans, jobs and rankings."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from conftest import fake_backend

from service.imaging import crops
from service.imaging.crops import CROP, DENSE, Resize
from service.models.ensemble import Prediction
from service.models.manifest import Label
from service.models.stopping_rule import LeadRule, PairedRule
from service.scheduling.cost_model import Key
from service.scheduling.types import JobSpec


def test_name_of_the_members() -> None:
    assert fake_backend(members=2).ensemble.name == "fake0,fake1"


def test_plans_by_resize_rule_of_the_member() -> None:
    ensemble = fake_backend(members=2).ensemble
    one, other = ensemble.members
    short = Resize("short", 256)
    resized = replace(ensemble, members=(one, replace(other, resize=short)))
    assert resized.plans("ten") == (crops.plan("ten", one.resize), crops.plan("ten", short))


def test_one_job_per_member() -> None:
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


def test_most_probable_label_is_first() -> None:
    assert ranked([0.2, 0.7, 0.1], 3) == [("green", 0.7), ("red", 0.2), ("blue", 0.1)]


def test_at_most_top_k_labels() -> None:
    assert ranked([0.2, 0.7, 0.1], 1) == [("green", 0.7)]


def test_at_most_all_labels() -> None:
    assert len(ranked([0.2, 0.7, 0.1], 1000)) == 3


def test_ties_are_in_class_order() -> None:
    assert [label for label, _ in ranked([0.3, 0.4, 0.3], 3)] == ["green", "red", "blue"]
    assert [label for label, _ in ranked([0.2, 0.2, 0.2], 3)] == ["red", "green", "blue"]


def test_prediction_fields() -> None:
    labels = (Label(name="cat", wnid="n01"), Label(name="dog", wnid=None))
    ensemble = replace(fake_backend().ensemble, labels=labels)
    results, plans = [[np.array([0.25, 0.75])]], ensemble.plans("single")
    assert ensemble.rank(results, plans, 2) == (
        Prediction("dog", None, 1, 0.75),
        Prediction("cat", "n01", 0, 0.25),
    )


def test_averages_over_views_then_members() -> None:
    ensemble = fake_backend(members=2).ensemble
    plans = (ensemble.plans("ten")[0], ensemble.plans("single")[1])
    ten = [np.array([4.0, 2.0, 1.0]), np.array([1.0, 1.0, 1.0])]  # sums of seven and three views
    single = [np.array([0.1, 0.2, 0.7])]
    ranking = ensemble.rank([ten, single], plans, 3)
    assert [prediction.label for prediction in ranking] == ["blue", "red", "green"]
    means = [prediction.probability for prediction in ranking]
    assert means == pytest.approx([(0.2 + 0.7) / 2, (0.5 + 0.1) / 2, (0.3 + 0.2) / 2])


def test_several_members_stop_with_the_largest_of_their_leads() -> None:
    ensemble = fake_backend(members=3).ensemble
    leads = zip(ensemble.members, (0.3, 0.7, 0.5), strict=True)
    members = tuple(replace(member, lead=lead) for member, lead in leads)
    assert replace(ensemble, members=members).stopping_rule("adaptive") == LeadRule(0.7)
    assert ensemble.stopping_rule("adaptive") == LeadRule()
    assert ensemble.stopping_rule("adaptive:paper") == PairedRule()

"""POST /classify with `coverage`: label sets, abstentions, and what is not calibrated."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from conftest import fake_backend
from starlette.testclient import TestClient
from test_classify import SETTINGS, assert_problem, parts, plain, service

from service.models.manifest import LabelSets

SETS = LabelSets(
    levels=(0.5, 0.8, 0.9, 0.95),
    thresholds={"single": (0.9, 0.6, 0.1, 0.0), "ten": (0.9, 0.6, 0.1, 0.0)},
)
SURE, UNSURE = plain("red"), plain("orange")  # orange is 0.61 red and 0.39 green


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    """A service with a calibrated model, and a cache."""
    backend = fake_backend()
    (member,) = backend.ensemble.members
    backend.ensemble = replace(backend.ensemble, members=(replace(member, label_sets=SETS),))
    with service(
        lambda *_: backend, SETTINGS.model_copy(update={"cache_bytes": 10**6})
    ) as calibrated:
        yield calibrated


@pytest.fixture(scope="module")
def uncalibrated() -> Iterator[TestClient]:
    """A service with a model that is not calibrated."""
    with service(lambda *_: fake_backend()) as client:
        yield client


def label_set(client: TestClient, image: bytes, **query: Any) -> tuple[dict[str, Any], list[str]]:
    """Ask for one image's set; give it, with the names of its labels apart."""
    response = client.post("/classify", params=query, files={"file": image})
    assert response.status_code == 200, response.text
    found = response.json()["label_set"]
    return found, [prediction["label"] for prediction in found.pop("labels")]


@pytest.mark.parametrize(
    ("coverage", "level", "labels"),
    [(0.8, 0.8, ["red"]), (0.6, 0.8, ["red"]), (0.9, 0.9, ["red", "green"])],
)
def test_a_set_has_the_labels_of_the_next_level(
    coverage: float, level: float, labels: list[str], client: TestClient
) -> None:
    for _ in range(2):  # the second answer is from the cache
        found, names = label_set(client, UNSURE, coverage=coverage, top_k=1)
        assert names == labels
        assert found == {"coverage": level, "size": len(labels), "abstention": None}


def test_an_empty_or_too_large_set_is_an_abstention(client: TestClient) -> None:
    empty = {"coverage": 0.5, "size": 0, "abstention": "empty"}
    assert label_set(client, UNSURE, coverage=0.5) == (empty, [])
    too_large = {"coverage": 0.95, "size": 3, "abstention": "too_large"}
    assert label_set(client, UNSURE, coverage=0.95) == (too_large, [])


def test_labels_of_a_set_are_predictions(client: TestClient) -> None:
    response = client.post("/classify?coverage=0.9&top_k=2", files={"file": UNSURE})
    body = response.json()
    assert body["label_set"]["labels"] == body["predictions"]


def test_each_of_several_images_has_its_set(client: TestClient) -> None:
    response = client.post("/classify?coverage=0.9", files=parts(UNSURE, b"no image", SURE))
    sets = [result.get("label_set") for result in response.json()["results"]]
    assert [found and found["size"] for found in sets] == [2, None, 1]


def test_coverage_may_be_a_form_field(client: TestClient) -> None:
    response = client.post("/classify", files={"file": UNSURE}, data={"coverage": "0.8"})
    assert response.json()["label_set"]["coverage"] == 0.8
    query = "coverage=0.8&views=auto"  # which has no label sets, but the form decides
    response = client.post(f"/classify?{query}", files={"file": UNSURE}, data={"views": "single"})
    assert response.json()["label_set"]["coverage"] == 0.8


def test_without_coverage_there_is_no_set(client: TestClient) -> None:
    assert "label_set" not in client.post("/classify", files={"file": SURE}).json()
    several = client.post("/classify", files=parts(SURE, UNSURE)).json()["results"]
    assert not any("label_set" in result for result in several)


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("coverage=0.99", "fake0 was calibrated on too few images for a coverage of 0.99"),
        ("coverage=0.9&views=dense", "fake0 has no label sets for the views `dense`"),
        ("coverage=0.9&views=auto", "the views `auto` have no label sets"),
    ],
)
def test_what_is_not_calibrated_is_a_conflict(
    query: str, sentence: str, client: TestClient
) -> None:
    response = client.post(f"/classify?{query}", files={"file": SURE})
    problem = assert_problem(response, 409, "not_calibrated")
    assert problem["detail"].startswith(sentence)


def test_a_model_that_is_not_calibrated_is_a_conflict(uncalibrated: TestClient) -> None:
    response = uncalibrated.post("/classify", files=parts(SURE, SURE), data={"coverage": "0.9"})
    assert_problem(response, 409, "not_calibrated")
    for accept in ("application/json", "application/x-ndjson"):
        headers = {"content-type": "text/plain", "accept": accept}  # of a body that is not read
        response = uncalibrated.post("/classify?coverage=0.9", content=b"x", headers=headers)
        assert_problem(response, 409, "not_calibrated")
    assert uncalibrated.post("/classify", files={"file": SURE}).status_code == 200


@pytest.mark.parametrize("coverage", ["0.49", "1", "90", "nan", "x", ""])
def test_a_coverage_is_from_a_half_to_999_in_1000(coverage: str, client: TestClient) -> None:
    response = client.post(f"/classify?coverage={coverage}", files={"file": SURE})
    assert_problem(response, 422, "invalid_parameter")

"""The label options of POST /classify: broader labels, specificity, and filters."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from conftest import fake_backend
from starlette.testclient import TestClient
from test_classify import assert_problem, parts, plain, service

from service.api.routes.label_options import MAX_LABEL, MAX_LABELS
from service.models.hypernyms import Synset
from service.models.manifest import Label

WARM, COLOUR = Synset("n01", "warm colour"), Synset("n02", "colour")
LABELS = (
    Label(name="red", wnid="n03", broader=(WARM, COLOUR)),
    Label(name="green", wnid="n04", broader=(WARM, COLOUR)),
    Label(name="blue", wnid=None),
)


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    """A client of a ready service on a fake model whose labels have broader ones."""
    backend = fake_backend()
    backend.ensemble = replace(backend.ensemble, labels=LABELS)
    with service(lambda *_: backend) as client:
        yield client


def ask(client: TestClient, colour: str = "yellow", **options: Any) -> httpx2.Response:
    query = {"views": "single", **options}
    return client.post("/classify", params=query, files=parts(plain(colour)))


def answer(client: TestClient, colour: str = "yellow", **options: Any) -> dict[str, Any]:
    response = ask(client, colour, **options)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def ranking(body: dict[str, Any]) -> list[tuple[str, float]]:
    return [(one["label"], one["probability"]) for one in body["predictions"]]


# Broader labels.


def test_predictions_have_the_path_of_broader_labels(client: TestClient) -> None:
    body = answer(client)
    assert {one["label"]: one["broader"] for one in body["predictions"]} == {
        "red": ["warm colour", "colour"],
        "green": ["warm colour", "colour"],
        "blue": None,
    }
    assert "specific" not in body


def test_the_path_of_a_beagle(real_client: TestClient, beagle: bytes) -> None:
    body = real_client.post("/classify?views=single&top_k=1", files={"file": beagle}).json()
    (prediction,) = body["predictions"]
    assert prediction["broader"][:4] == ["hound", "hunting dog", "dog", "canine"]
    assert prediction["broader"][-1] == "living thing"


# Specificity.


@pytest.mark.parametrize(
    ("specificity", "specific"),
    [
        (0.4, {"label": "red", "wnid": "n03", "index": 0, "probability": 0.5, "classes": 1,
               "broader": ["warm colour", "colour"]}),
        (0.9, {"label": "warm colour", "wnid": "n01", "index": None, "probability": 1,
               "classes": 2, "broader": ["colour"]}),
    ],
)  # fmt: skip
def test_the_most_specific_label_is_as_probable_as_asked(
    specificity: float, specific: dict[str, Any], client: TestClient
) -> None:
    body = answer(client, specificity=specificity)
    assert body["specific"] == {**specific, "probability": pytest.approx(specific["probability"])}


def test_the_root_has_no_broader_label(client: TestClient) -> None:
    specific = answer(client, "white", specificity=0.9)["specific"]
    assert (specific["label"], specific["broader"], specific["classes"]) == ("entity", None, 3)


def test_options_may_be_form_fields(client: TestClient) -> None:
    fields = {"specificity": "0.9", "labels": "blue", "threshold": "0", "renormalise": "true"}
    body = client.post("/classify", files=parts(plain("yellow")), data=fields).json()
    assert [one["label"] for one in body["predictions"]] == ["blue"]
    assert body["specific"]["label"] == "warm colour"  # of all labels


def test_each_of_several_images_has_its_own(client: TestClient) -> None:
    files = parts(plain("red"), b"no image", plain("yellow"))
    query = {"specificity": 0.9, "labels": "green", "threshold": 0.4}
    first, bad, last = client.post("/classify", params=query, files=files).json()["results"]
    assert (first["specific"]["label"], first["predictions"]) == ("red", [])
    assert list(bad) == ["filename", "error"]
    assert last["specific"]["label"] == "warm colour"
    assert [one["label"] for one in last["predictions"]] == ["green"]


@pytest.mark.parametrize("options", [{"specificity": 0.5}, {"specificity": 1, "labels": "red"}])
def test_specificity_needs_broader_labels(options: dict[str, Any]) -> None:
    with service(lambda *_: fake_backend()) as client:
        problem = assert_problem(ask(client, **options), 422, "no_broader_labels")
    assert problem["detail"] == "fake0 has no broader labels; omit `specificity`"


DOGS = "n02106382_Bouvier_des_Flandres.JPEG"  # an Afghan hound, a briard or a Newfoundland?


def test_a_dog_of_no_sure_breed_is_a_dog(real_client: TestClient, shared: Path) -> None:
    photo = (shared / "photos" / DOGS).read_bytes()
    query = {"views": "single", "top_k": 1000, "specificity": 0.9}
    body = real_client.post("/classify", params=query, files={"file": photo}).json()
    assert body["predictions"][0]["probability"] < 0.5
    specific = body["specific"]
    assert (specific["label"], specific["wnid"], specific["classes"]) == ("dog", "n02084071", 118)
    dogs = [one["probability"] for one in body["predictions"] if "dog" in one["broader"]]
    assert len(dogs) == 118
    assert specific["probability"] == pytest.approx(sum(dogs))
    assert specific["probability"] > 0.9


def test_a_sure_class_stays_a_class(real_client: TestClient, shared: Path) -> None:
    photo = (shared / "photos/flickr/tractor.jpg").read_bytes()
    query = {"views": "single", "specificity": 0.5}
    body = real_client.post("/classify", params=query, files={"file": photo}).json()
    first, specific = body["predictions"][0], body["specific"]
    shared_fields = ("label", "wnid", "index", "broader")
    assert [first[field] for field in shared_fields] == [specific[field] for field in shared_fields]


# Filters.


def test_only_named_labels_are_ranked(client: TestClient) -> None:
    assert ranking(answer(client, labels="blue,1")) == [
        ("green", pytest.approx(0.5)), ("blue", pytest.approx(0)),
    ]  # fmt: skip
    assert ranking(answer(client, labels="Warm colour", top_k=1)) == [("red", pytest.approx(0.5))]


def test_labels_below_the_threshold_are_left_out(client: TestClient) -> None:
    assert ranking(answer(client, threshold=0.4)) == [
        ("red", pytest.approx(0.5)), ("green", pytest.approx(0.5)),
    ]  # fmt: skip
    assert ranking(answer(client, threshold=0.9)) == []


def test_renormalised_probabilities_are_of_the_named_labels(client: TestClient) -> None:
    query = {"labels": "red,blue", "renormalise": True}
    assert ranking(answer(client, **query)) == [
        ("red", pytest.approx(1)), ("blue", pytest.approx(0)),
    ]  # fmt: skip


def test_a_real_ranking_of_cats(real_client: TestClient, beagle: bytes) -> None:
    query = {"views": "single", "labels": "feline", "top_k": 1000}
    body = real_client.post("/classify", params=query, files={"file": beagle}).json()
    assert len(body["predictions"]) == 13
    assert all("feline" in one["broader"] for one in body["predictions"])
    assert sum(one["probability"] for one in body["predictions"]) < 0.1
    query["renormalise"] = "true"
    body = real_client.post("/classify", params=query, files={"file": beagle}).json()
    assert sum(one["probability"] for one in body["predictions"]) == pytest.approx(1)


def test_an_unknown_label_is_named_with_the_nearest(client: TestClient) -> None:
    problem = assert_problem(ask(client, labels="red,grene"), 404, "unknown_label")
    assert problem["detail"] == "there is no label 'grene'; did you mean green?"


ONE_TOO_MANY = ",".join(["red"] * (MAX_LABELS + 1))


@pytest.mark.parametrize("labels", ["", ",", "red,", ONE_TOO_MANY, "x" * (MAX_LABEL + 1)])
def test_the_number_and_length_of_labels_are_bounded(labels: str, client: TestClient) -> None:
    problem = assert_problem(ask(client, labels=labels), 422, "invalid_parameter")
    assert problem["detail"] == (
        "labels: give 1 to 100 labels, separated by commas, of 1 to 100 characters each"
    )


def test_as_many_labels_as_allowed_are_taken(client: TestClient) -> None:
    assert len(ranking(answer(client, labels=",".join(["red"] * MAX_LABELS)))) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("labels", ",".join(["x" * 99] * 50)),
        ("threshold", "-0.1"),
        ("threshold", "1.1"),
        ("threshold", "nan"),
        ("specificity", "0"),
        ("specificity", "1.1"),
        ("specificity", "nan"),
        ("specificity", "inf"),
        ("renormalise", "maybe"),
    ],
)
def test_other_values_are_refused(name: str, value: str, client: TestClient) -> None:
    problem = assert_problem(ask(client, **{name: value}), 422, "invalid_parameter")
    assert problem["detail"].startswith(f"{name}: ")

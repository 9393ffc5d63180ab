"""Parameters in the query and in the form: unknown ones are refused."""

from collections.abc import Iterator
from typing import Any

import pytest
from conftest import colour_or_map, fake_backend
from starlette.testclient import TestClient
from test_classify import JPEG, assert_problem, parts, plain, service
from test_registry import World, serving
from test_registry import world as world  # noqa: PLC0414 - a fixture
from test_routes import TEMPLATES, application, filled
from test_uploads import END, FORM, UNCHOSEN, file

from service.api.routes import docs, page

RED = plain("red")


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    """A ready service on a fake model that can be explained."""
    with service(lambda *_: fake_backend(colour_or_map, explains=True)) as client:
        yield client


def sentence(answer: Any) -> str:
    assert answer.status_code == 422, answer.text
    body = answer.json()
    return str(body.get("detail") or body["error"])


# The query.

API = sorted(
    (method, template)
    for template, methods in TEMPLATES.items()
    for method in methods
    if template not in docs.PATHS | page.PATHS
)


@pytest.mark.parametrize(("method", "template"), API)
def test_an_unknown_query_parameter_is_refused(
    method: str, template: str, client: TestClient
) -> None:
    answer = client.request(method, f"{filled(template)}?nothing=1")
    assert "there is no query parameter 'nothing'; " in sentence(answer)


@pytest.mark.parametrize(
    ("method", "path", "said"),
    [
        ("POST", "/classify?view=single", "'view'; did you mean views?"),
        ("POST", "/classify?Views=single", "'Views'; did you mean views?"),
        ("POST", "/classify?topk=1", "'topk'; did you mean top_k?"),
        ("POST", "/classify?top_k=1&xyz", "'xyz'; there are coverage, labels, model, "),
        ("POST", "/explain?labels=red", "'labels'; did you mean label?"),
        ("POST", "/embed?top_k=1", "'top_k'; there are model, normalise, views"),
        ("GET", "/readyz?verbos", "'verbos'; did you mean verbose?"),
        ("GET", "/metrics?x=1", "'x'; this path has none"),
        ("PUT", "/models/fake?defaults=1", "'defaults'; did you mean default?"),
        ("GET", "/v2/models/fake?x=1", "'x'; this path has none"),
        ("GET", "/models?%3Cscript%3E=1", "of that name; this path has none"),
    ],
)
def test_an_unknown_query_parameter_is_named_with_the_nearest_known(
    method: str, path: str, said: str, client: TestClient
) -> None:
    answer = client.request(method, path)
    assert said in sentence(answer)
    if not path.startswith("/v2"):
        assert_problem(answer, 422, "invalid_parameter")


def test_a_query_parameter_that_is_given_twice_is_refused(client: TestClient) -> None:
    answer = client.post("/classify?views=ten&views=single", files=parts(RED))
    assert sentence(answer) == "the query parameter views is given 2 times; give one"


def test_a_page_is_sent_whatever_is_in_its_query(client: TestClient) -> None:
    for path in page.PATHS | docs.PATHS:
        assert client.get(f"{path}?utm_source=mail").status_code == 200


def test_every_operation_documents_that_it_refuses_parameters() -> None:
    for template, methods in application().openapi()["paths"].items():
        kind = "application/json" if template.startswith("/v2") else "application/problem+json"
        for described in methods.values():
            assert {*described["responses"]["422"]["content"]} == {kind}, template


# The form.


def ask(client: TestClient, path: str, *images: bytes, **fields: str) -> Any:
    named = [(name, (None, value)) for name, value in fields.items()]
    return client.post(path, files=[*named, *parts(*images)])


def test_the_fields_of_a_form_are_parameters_like_those_of_the_query(client: TestClient) -> None:
    answer = ask(client, "/classify", RED, views="single", top_k="2", model="fake").json()
    assert (answer["views"], len(answer["predictions"]), answer["model"]) == ("single", 2, "fake0")
    auto = ask(client, "/classify", RED, views="auto").json()
    assert auto["views"] in {"single", "ten", "paper"}
    explained = ask(client, "/explain", RED, views="ten", label="blue", model="fake").json()
    assert (explained["views"], explained["label"]) == ("ten", "blue")
    assert len(explained["maps"]) == 10
    overridden = ask(client, "/classify?views=ten&top_k=3", RED, views="single").json()
    assert (overridden["views"], len(overridden["predictions"])) == ("single", 3)
    behind = client.post("/classify", files=[*parts(RED), ("top_k", (None, "1"))]).json()
    assert len(behind["predictions"]) == 1


@pytest.mark.parametrize(
    ("path", "fields", "said"),
    [
        ("/classify", {"view": "single"}, "'view'; did you mean views?"),
        ("/classify", {"xyz": "red"}, "'xyz'; there are coverage, file, labels, "),
        ("/classify", {"label": "red"}, "'label'; did you mean labels?"),
        ("/explain", {"top_k": "1"}, "'top_k'; there are file, label, model, views"),
        ("/classify", {"views": "eleven"}, "views: "),
        ("/classify", {"top_k": "0"}, "top_k: "),
        ("/classify", {"top_k": "many"}, "top_k: "),
        ("/classify", {"model": "A B"}, "model: "),
        ("/explain", {"views": "auto"}, "views: "),
        ("/embed", {"views": "adaptive"}, "views: "),
        ("/embed", {"normalise": "often"}, "normalise: "),
        ("/embed", {"normalize": "true"}, "'normalize'; did you mean normalise?"),
        ("/explain", {"label": "x" * 201}, "label: "),
    ],
)
def test_an_invalid_field_is_refused(
    path: str, fields: dict[str, str], said: str, client: TestClient
) -> None:
    answer = ask(client, path, RED, **fields)
    assert said in sentence(answer)
    assert_problem(answer, 422, "invalid_parameter")


def test_a_form_field_chooses_the_model(world: World) -> None:
    with serving(world, additional_models="b") as client:
        assert ask(client, "/classify", RED, model="b").json()["model"] == "b"
        assert_problem(ask(client, "/classify", RED, model="c"), 404, "unknown_model")


def test_the_form_is_documented_with_its_fields(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    chosen = {"coverage", "labels", "threshold", "renormalise", "specificity"}
    for path, names in (("/classify", {"model", "top_k", "views", *chosen}),
                        ("/embed", {"model", "normalise", "views"}),
                        ("/explain", {"label", "model", "views"})):  # fmt: skip
        content = paths[path]["post"]["requestBody"]["content"]
        form = content["multipart/form-data"]["schema"]
        assert form["properties"].keys() == {"file", *names}
        assert form["additionalProperties"] is False
        assert "null" not in str(form)


# Images that are empty.


def test_an_empty_image_fails_alone(client: TestClient) -> None:
    answer = client.post("/classify", files=parts(RED, b"", RED)).json()
    first, empty, last = answer["results"]
    assert first["predictions"][0]["label"] == last["predictions"][0]["label"] == "red"
    assert (empty["filename"], empty["error"]["code"]) == ("1.png", "malformed")
    assert empty["error"]["status"] == 400
    both = client.post("/classify", files=parts(b"", b"")).json()
    assert [result["error"]["code"] for result in both["results"]] == ["malformed"] * 2
    assert_problem(client.post("/explain", files=parts(b"")), 400, "malformed")


def test_a_file_field_without_a_file_is_ignored(client: TestClient) -> None:
    body = file(RED) + UNCHOSEN[0] + UNCHOSEN[1] + END
    answer = client.post("/classify", content=body, headers={"content-type": FORM})
    assert answer.json()["predictions"][0]["label"] == "red"


# What is compressed.


@pytest.mark.parametrize("path", ["/classify", "/embed", "/explain", "/v2/models/fake/infer"])
@pytest.mark.parametrize(
    "kind", ["image/jpeg", "multipart/form-data; boundary=b", "application/json"]
)
def test_a_compressed_body_is_refused_on_every_route(
    path: str, kind: str, client: TestClient
) -> None:
    headers = {**JPEG, "content-type": kind, "content-encoding": "gzip"}
    answer = client.post(path, content=b"x", headers=headers)
    assert answer.status_code == 415
    assert answer.headers["accept-encoding"] == "identity"
    body = answer.json()
    assert (body.get("detail") or body["error"]) == (
        "the body is compressed, as its Content-Encoding says; send it without "
        "(Accept-Encoding: identity)"
    )

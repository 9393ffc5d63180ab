"""POST /explain: what each place of an image adds to a label, exactly."""

import asyncio
import io
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import colour_or_map, fake_backend
from PIL import Image
from starlette.testclient import TestClient
from test_classify import assert_problem, encoded, parts, plain, service
from test_metrics import counts

from service.engine import weights
from service.engine.prepared_image import PreparedImage, prepare
from service.engine.torch_network import Normalise
from service.errors import InferenceFailed, UnknownLabel
from service.imaging.activation_map import CELLS, Activation, heat, hottest
from service.imaging.crops import Box, Canvas, Plan, Resize, View, plan
from service.imaging.heatmap import paint
from service.imaging.image_decoder import Bounds
from service.models.ensemble import Result
from service.models.store import Store
from service.scheduling.cost_model import Buckets, CostModel
from service.scheduling.types import Batch

KIND = {"Content-Type": "image/jpeg"}
DRAWN = {**KIND, "Accept": "image/png"}


def explained(client: TestClient, image: bytes, **query: str) -> dict[str, Any]:
    answer = client.post("/explain", params=query, content=image, headers=KIND)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


# With the real weights.


@pytest.mark.parametrize(("views", "shape"), [
    ("single", (1, 7, 7)), ("ten", (10, 7, 7)), ("dense", (2, 9, 9)),
])  # fmt: skip
def test_the_mean_of_a_map_and_the_bias_are_the_logit_that_the_network_gives(
    views: str, shape: tuple[int, ...], real_client: TestClient, real_store: Store, beagle: bytes
) -> None:
    body = explained(real_client, beagle, views=views)
    assert (body["label"], body["wnid"], body["index"]) == ("beagle", "n02088364", 162)
    assert np.shape([map_["grid"] for map_ in body["maps"]]) == shape
    means = [np.mean(map_["grid"]) + body["bias"] for map_ in body["maps"]]
    assert means == pytest.approx([map_["logit"] for map_ in body["maps"]], abs=1e-4)
    assert means == pytest.approx(logits(real_store, beagle, views), abs=1e-3)


def logits(store: Store, image: bytes, views: str) -> list[float]:
    """Compute the logits of class 162 by the plain network, without batches or executors."""
    model = weights.load(store, "bvlc_googlenet")
    preprocessing = model.manifest.preprocessing
    (cuts,) = prepare(image, [plan(views, preprocessing.resized)], Bounds(10**8))
    pixels = []
    for view in cuts.plan.views:
        canvas = cuts.canvases[view.canvas]
        square = canvas[view.top : view.top + view.side, view.left : view.left + view.side]
        pixels.append(torch.tensor(square[:, ::-1].copy() if view.mirror else square))
    with torch.inference_mode():
        outputs = model.network()(Normalise(preprocessing, torch.float32)(torch.stack(pixels)))
    values: list[float] = outputs[:, 162].tolist()
    return values


def test_the_probability_is_that_of_classify(real_client: TestClient, beagle: bytes) -> None:
    body = explained(real_client, beagle, views="ten")
    classified = real_client.post("/classify?views=ten", content=beagle, headers=KIND).json()
    assert body["probability"] == pytest.approx(classified["predictions"][0]["probability"])


@pytest.mark.parametrize("label", ["n02123045", "282", "tiger cat"])
def test_any_label_can_be_explained(label: str, real_client: TestClient, beagle: bytes) -> None:
    body = explained(real_client, beagle, label=label)
    by_wnid = label.startswith("n")
    assert body["index"] == (281 if by_wnid else 282)
    assert body["probability"] < 0.01
    (map_,) = body["maps"]
    assert np.mean(map_["grid"]) + body["bias"] == pytest.approx(map_["logit"], abs=1e-4)


@pytest.mark.parametrize("label", ["1000", "-1", "n99999999", "beagles"])
def test_an_unknown_or_ambiguous_label_is_refused(
    label: str, real_client: TestClient, beagle: bytes
) -> None:
    refused = real_client.post("/explain", params={"label": label}, content=beagle, headers=KIND)
    problem = assert_problem(refused, 404, "unknown_label")
    assert problem["detail"] == f"bvlc_googlenet has no class {label!r}, or several"


@pytest.mark.parametrize("views", ["single", "ten", "dense"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_part_that_supports_a_label_is_where_the_object_is(
    side: str, views: str, real_client: TestClient, beagle: bytes
) -> None:
    """A beagle at one end of a grey image, which is twice as wide as high."""
    with Image.open(io.BytesIO(beagle)) as photo:
        dog = photo.convert("RGB").resize((300, 300))
    wide = Image.new("RGB", (600, 300), "grey")
    wide.paste(dog, (0 if side == "left" else 300, 0))
    box = explained(real_client, encoded(wide), views=views, label="beagle")["box"]
    middle = box["left"] + box["width"] / 2
    assert middle < 0.5 if side == "left" else middle > 0.5


def test_a_mirrored_view_s_map_is_as_the_image_is(real_client: TestClient, beagle: bytes) -> None:
    maps = explained(real_client, beagle, views="ten")["maps"]
    for plain_one, mirrored in zip(maps[:5], maps[5:], strict=True):
        same = np.corrcoef(np.ravel(plain_one["grid"]), np.ravel(mirrored["grid"]))[0, 1]
        other = np.corrcoef(np.ravel(plain_one["grid"]), np.ravel(np.fliplr(mirrored["grid"])))
        assert same > max(0.8, other[0, 1])
        assert {**plain_one, "grid": 0, "logit": 0} == {**mirrored, "grid": 0, "logit": 0}


def test_as_an_image_it_is_drawn_over_the_photo(real_client: TestClient, beagle: bytes) -> None:
    answer = real_client.post("/explain", content=beagle, headers=DRAWN)
    assert answer.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(beagle)) as photo, Image.open(io.BytesIO(answer.content)) as drawn:
        assert drawn.size == photo.size
        before = np.asarray(photo.convert("RGB"), np.float32)
        changed = np.abs(np.asarray(drawn, np.float32) - before).mean(2)
    box = explained(real_client, beagle)["box"]
    height, width = changed.shape
    down = slice(int(box["top"] * height), int((box["top"] + box["height"]) * height))
    across = slice(int(box["left"] * width), int((box["left"] + box["width"]) * width))
    assert changed[down, across].mean() > 2 * changed.mean() > 0


# Errors.


@pytest.mark.parametrize("model", [{}, {"members": 2, "explains": True}])
def test_a_model_without_maps_and_an_ensemble_are_refused(model: dict[str, Any]) -> None:
    with service(lambda *_: fake_backend(**model)) as client:
        assert client.get("/models").json()["models"][0]["explains"] is False
        refused = client.post("/explain", files=parts(plain("red")))
        assert_problem(refused, 501, "not_explainable")


@pytest.mark.parametrize(
    ("query", "images", "status", "code"),
    [
        ("", [plain("red")] * 2, 413, "too_large"),
        ("", [plain("red")[:40]], 422, "unreadable_image"),
        ("?model=other", [plain("red")], 404, "unknown_model"),
        ("?label=nothing", [plain("red")], 404, "unknown_label"),
    ],
)
def test_invalid_requests_are_problems_as_for_classify(
    query: str, images: Sequence[bytes], status: int, code: str, client: TestClient
) -> None:
    assert_problem(client.post(f"/explain{query}", files=parts(*images)), status, code)


@pytest.fixture
def client() -> Iterator[TestClient]:
    """A client of a service on a fake model that explains."""
    with service(lambda *_: fake_backend(colour_or_map, explains=True)) as client:
        yield client


def test_explained_images_are_counted_by_their_outcome() -> None:
    failures: list[Exception] = []

    def run(batch: Batch[PreparedImage]) -> Sequence[Result]:
        if failures and batch.key.maps:
            raise failures[0]
        return colour_or_map(batch)

    with service(lambda *_: fake_backend(run, explains=True)) as client:
        before = counts(client, "googlenet_images_total")
        assert explained(client, plain("red"), views="ten")["maps"][0]["grid"] == [[1, 1], [1, 1]]
        client.post("/explain", content=b"no image", headers=KIND)
        client.post("/explain?label=nothing", content=plain("red"), headers=KIND)
        failures.append(InferenceFailed("the device failed"))
        failed = client.post("/explain", content=plain("red"), headers=KIND)
        assert_problem(failed, 500, "inference_failed")
        after = counts(client, "googlenet_images_total")
    assert {key: n - before.get(key, 0) for key, n in after.items() if n != before.get(key, 0)} == {
        ("ok", "ten"): 1,
        ("unsupported_type", "single"): 1,
        ("inference_failed", "single"): 1,
    }


def test_explain_is_never_background_work(client: TestClient) -> None:
    name = "googlenet_requests_total"
    before = counts(client, name).get(("200", "POST", "interactive", "/explain"), 0)
    answer = client.post("/explain", content=plain("red"), headers={**KIND, "Priority": "u=7"})
    assert answer.status_code == 200
    assert counts(client, name)["200", "POST", "interactive", "/explain"] == before + 1


def test_a_request_without_time_for_its_maps_is_refused_before_any_work() -> None:
    """Classifying 144 views is quick enough, and mapping them one by one is not."""
    backend = fake_backend(colour_or_map, explains=True, seconds_per_row=1e-4)
    costs = backend.ensemble.costs
    slow = {key: Buckets({1: 0.1}) for key in costs.curves if key.maps}
    backend.ensemble = replace(backend.ensemble, costs=CostModel({**costs.curves, **slow}))
    with service(lambda *_: backend) as client:
        paper = client.post("/explain?views=paper", content=plain("red"), headers=KIND)
        assert_problem(paper, 504, "deadline_exceeded")
        assert not any(counts(client, "googlenet_batches_total").values())
        ten = client.post("/explain?views=ten", content=plain("red"), headers=KIND)
        assert ten.status_code == 200


def test_a_drawing_that_takes_too_long_is_abandoned() -> None:
    backend = fake_backend(colour_or_map, explains=True)
    drawn = threading.Event()

    async def blocked(*_: Any) -> bytes:
        await asyncio.to_thread(drawn.wait, 20)
        return b""

    with service(lambda *_: backend) as client:
        assert client.post("/explain", content=plain("red"), headers=DRAWN).status_code == 200
        backend.paint = blocked  # type: ignore[method-assign]
        late = client.post(
            "/explain", content=plain("red"), headers={**DRAWN, "X-Timeout-Ms": "500"}
        )
        assert_problem(late, 504, "deadline_exceeded")
        drawn.set()


def test_an_image_that_nowhere_supports_a_label_has_no_box(client: TestClient) -> None:
    green = explained(client, plain("red"), label="green")
    assert (green["box"], green["index"]) == (None, 1)
    drawn = client.post("/explain?label=green", content=plain("red"), headers=DRAWN)
    with Image.open(io.BytesIO(drawn.content)) as image:
        assert {*image.get_flattened_data()} == {(255, 0, 0)}


def test_a_name_that_two_classes_have_names_neither() -> None:
    ensemble = fake_backend().ensemble
    twice = replace(ensemble, labels=(*ensemble.labels, ensemble.labels[0]))
    assert twice.find("green") == 1
    with pytest.raises(UnknownLabel, match="no class 'red', or several"):
        twice.find("red")


# Where the maps are.


def test_views_are_found_where_they_are_cut() -> None:
    warped = Canvas(Resize("warp", 256), 256)
    ten = Plan((warped,), (View(0, 0, 0), View(0, 32, 32), View(0, 16, 16)))
    share = 224 / 256
    assert ten.part(ten.views[0], (1000, 10)) == Box(0, 0, share, share)
    assert ten.part(ten.views[1], (10, 1000)) == Box(32 / 256, 32 / 256, share, share)
    assert ten.part(ten.views[2], (77, 33)) == Box(
        *(pytest.approx(value) for value in (1 / 16, 1 / 16, share, share))
    )
    short = plan("single", Resize("short", 256))
    wide = short.part(short.views[0], (512, 256))
    assert wide == Box(144 / 512, 16 / 256, 224 / 512, 224 / 256)


def test_a_shrunk_view_shows_its_whole_canvas() -> None:
    paper = plan("paper", Resize("warp", 256))
    boxes = [paper.part(view, (512, 256)) for view in paper.views]
    assert len(boxes) == 144
    whole = boxes[5]  # of the first square, 256 of 512 pixels, on the left
    assert whole == Box(0, 0, 0.5, 1)
    assert boxes[72 + 5] == whole  # its mirror
    for box in boxes:
        assert -1e-9 <= box.left <= box.left + box.width <= 1 + 1e-9
        assert -1e-9 <= box.top <= box.top + box.height <= 1 + 1e-9


WHOLE = Box(0, 0, 1, 1)


def activation(grid: Sequence[Sequence[float]], box: Box = WHOLE) -> Activation:
    return Activation(np.float32(grid), 0.0, 0.0, box)


def test_a_heat_map_is_the_mean_where_views_are_and_0_where_none_is() -> None:
    left = Box(0, 0, 0.5, 1)
    made = heat([activation([[4]], left), activation([[2]])])
    half = CELLS // 2
    assert np.allclose(made[:, :half], 3)
    assert np.allclose(made[:, half:], 2)
    alone = heat([activation([[4]], left)])
    assert np.allclose(alone[:, half:], 0)
    assert hottest(alone) == left


def test_between_the_places_of_a_map_it_is_bilinear() -> None:
    made = heat([activation([[0, 1], [0, 1]])])
    assert np.allclose(made, made[0])
    quarter = CELLS // 4
    assert np.allclose(made[0, :quarter], 0)
    assert np.allclose(made[0, -quarter:], 1)
    assert np.allclose(np.diff(made[0, quarter:-quarter]), 2 / CELLS)


def test_the_hottest_part_is_around_all_above_half() -> None:
    made = np.zeros((CELLS, CELLS), np.float32)
    made[8, 16], made[31, 20], made[0, 0] = 1, 0.6, 0.5
    assert hottest(made) == Box(16 / CELLS, 8 / CELLS, 5 / CELLS, 24 / CELLS)
    assert hottest(-made) is None


def test_a_large_image_is_drawn_small() -> None:
    drawn = paint(plain("red", 3000, 1500), np.ones((CELLS, CELLS), np.float32), Bounds(10**8))
    with Image.open(io.BytesIO(drawn)) as image:
        assert image.size == (1024, 512)
        assert {*image.get_flattened_data()} == {(219, 13, 20)}

"""POST /embed: features of images, for search, duplicates and few-shot heads."""

import io
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest import colour_or_map, fake_backend
from PIL import Image, ImageOps
from starlette.testclient import TestClient
from test_classify import assert_problem, encoded, parts, plain, service
from test_metrics import counts

from service.engine.prepared_image import PreparedImage
from service.models.ensemble import Result
from service.scheduling.types import Batch
from service.settings import Settings

CACHING = Settings(model="fake", views="ten", cache_bytes=100_000)


def embedded(client: TestClient, *images: bytes, **query: str) -> Any:
    answer = client.post("/embed", params=query, files=parts(*images))
    assert answer.status_code == 200, answer.text
    return answer.json()


# With the real weights.


def features(
    client: TestClient, images: Sequence[Image.Image], **query: str
) -> npt.NDArray[np.float64]:
    """Embed images: (images, 1024)."""
    files = [encoded(image.convert("RGB"), "JPEG", quality=90) for image in images]
    rows = [embedded(client, file, **query)["features"] for file in files]
    return np.array(rows)


@pytest.mark.parametrize("views", ["single", "ten"])
def test_a_photo_is_nearest_to_its_own_mirrored_scaled_and_cropped_versions(
    views: str, real_client: TestClient, photos: list[Image.Image]
) -> None:
    chosen = photos[:6]
    versions = [
        [photo, ImageOps.mirror(photo), ImageOps.scale(photo, 0.6), ImageOps.crop(photo, 8)]
        for photo in chosen
    ]
    flat = [version for photo in versions for version in photo]
    cosines = features(real_client, flat, views=views, normalise="true")
    cosines = cosines @ cosines.T
    assert np.diag(cosines) == pytest.approx(1, abs=1e-5)
    own = np.kron(np.eye(len(chosen)), np.ones((4, 4))).astype(bool)
    for similar, same in zip(cosines, own, strict=True):
        assert similar[same].min() > similar[~same].max()


def test_a_mirrored_image_has_the_same_features_by_ten_views(
    real_client: TestClient, beagle: bytes
) -> None:
    """Of 256 pixels, so that it is not resized, an image has the same ten views mirrored."""
    upright = Image.open(io.BytesIO(beagle)).convert("RGB").resize((256, 256))
    images = [encoded(image) for image in (upright, ImageOps.mirror(upright))]
    first, mirrored = embedded(real_client, *images, views="ten")["results"]
    assert first["features"] == pytest.approx(mirrored["features"], abs=1e-4)
    assert len(first["features"]) == 1024


def test_features_are_normalised_on_request(real_client: TestClient, beagle: bytes) -> None:
    plain_, normalised = (
        np.array(embedded(real_client, beagle, normalise=value)["features"], np.float32)
        for value in ("false", "true")
    )
    norm = np.linalg.norm(plain_)
    assert norm > 2
    assert normalised == pytest.approx(plain_ / norm, abs=1e-6)


# With a fake model, whose features are the mean colours.


@pytest.fixture
def client() -> Iterator[TestClient]:
    """A client of a service with a cache on a fake model that has features."""
    with service(lambda *_: fake_backend(colour_or_map, explains=True), CACHING) as client:
        yield client


def test_one_image_and_several_with_a_bad_one(client: TestClient) -> None:
    one = embedded(client, plain("red"), views="ten")
    assert one == {"model": "fake0", "version": "1", "views": "ten", "features": [255, 0, 0]}
    several = embedded(client, plain("blue"), b"text", plain("black"), normalise="true")
    assert several["views"] == "single"
    blue, bad, black = several["results"]
    assert blue == {"filename": "0.png", "features": [0, 0, 1]}
    assert (bad["filename"], bad["error"]["code"]) == ("1.png", "unsupported_type")
    assert black["features"] == [0, 0, 0]  # has no direction
    assert_problem(client.post("/embed", files=parts(b"text")), 415, "unsupported_type")


def test_images_are_counted_and_cached_apart_from_classifications(client: TestClient) -> None:
    images = parts(plain("red"))
    for path, expected in (
        ("/classify?views=single", "fwd=miss"),
        ("/embed", "fwd=miss"),
        ("/embed?normalise=true", "hit"),
        ("/classify?views=single", "hit"),
    ):
        answer = client.post(path, files=images, headers={"Priority": "u=7"})
        assert answer.status_code == 200
        assert answer.headers["cache-status"].endswith(expected)
        assert "inference;dur=" in answer.headers["server-timing"]
    assert answer.json().keys() >= {"predictions"}
    assert counts(client, "googlenet_images_total")["ok", "single"] == 4
    assert counts(client, "googlenet_requests_total")["200", "POST", "background", "/embed"] == 2


def test_images_share_batches_with_classifications() -> None:
    batches: list[list[bool]] = []
    running, go = threading.Event(), threading.Event()

    def run(batch: Batch[PreparedImage]) -> Sequence[Result]:
        running.set()
        batches.append(sorted(part.payload.features for part in batch.slices))
        assert go.wait(20)
        return colour_or_map(batch)

    backend, decoded = fake_backend(run, explains=True), threading.Semaphore(0)
    prepare = backend.prepare

    async def prepared(*image: Any, features: bool) -> Sequence[PreparedImage]:
        result = await prepare(*image, features=features)
        decoded.release()
        return result  # and is queued before other tasks run

    backend.prepare = prepared  # type: ignore[assignment,method-assign]
    with (
        service(lambda *_: backend, Settings(model="fake", views="single")) as client,
        ThreadPoolExecutor(3) as threads,
    ):
        first = threads.submit(client.post, "/classify", files=parts(plain("red")))
        assert running.wait(20)
        paths = ("/classify", "/embed")
        rest = [threads.submit(client.post, path, files=parts(plain("blue"))) for path in paths]
        assert all(decoded.acquire(timeout=20) for _ in range(3))
        client.get("/livez")
        go.set()
        answers = [sent.result(20).json() for sent in (first, *rest)]
    assert batches == [[False], [False, True]]
    assert answers[1]["predictions"][0]["label"] == "blue"
    assert answers[2]["features"] == [0, 0, 255]


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ({}, "fake0 has no features; use another model"),
        (
            {"members": 2, "explains": True},
            "fake0,fake1 are several models; ask a single one for features",
        ),
    ],
)
def test_models_without_features_are_named(model: dict[str, Any], sentence: str) -> None:
    with service(lambda *_: fake_backend(colour_or_map, **model)) as client:
        refused = client.post("/embed", files=parts(plain("red")))
        assert assert_problem(refused, 501, "no_features")["detail"] == sentence
        assert client.post("/classify", files=parts(plain("red"))).status_code == 200


def test_a_request_without_time_is_refused_before_any_work() -> None:
    backend = fake_backend(colour_or_map, explains=True, seconds_per_row=0.1)
    with service(lambda *_: backend) as client:
        headers = {"X-Timeout-Ms": "900"}
        late = client.post("/embed?views=ten", files=parts(plain("red")), headers=headers)
        assert_problem(late, 504, "deadline_exceeded")
        assert not any(counts(client, "googlenet_batches_total").values())

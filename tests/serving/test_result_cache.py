"""The result cache: a repeated image costs no batch, and memory is bounded."""

import base64
from collections.abc import Iterator

import numpy as np
import pytest
from conftest import colour_or_map, fake_backend
from PIL import Image
from starlette.testclient import TestClient
from test_classify import Gate, encoded, parts, plain, service, top
from test_metrics import counts, value
from test_registry import World, serving, world  # noqa: F401 - a fixture

from service.serving import result_cache
from service.serving.result_cache import CachedResult, ResultCache
from service.settings import Settings

SETTINGS = Settings(model="fake", cache_bytes=1_000_000, views="single")
RED, LIME = plain("red"), plain("lime")
MISS, HIT = "googlenet-service; fwd=miss", "googlenet-service; hit"
ENTRY = 3 * 8 + 512  # bytes, of three classes


# Keys and memory.


def test_the_key_depends_on_content_and_views() -> None:
    zeros = np.zeros((3, 4, 4), np.float32)
    keys = {
        result_cache.key(image, views)
        for image in (
            RED,
            LIME,
            zeros,
            zeros.reshape(4, 3, 4),
            zeros.astype(np.uint8),
            zeros.tobytes(),
            zeros + 1,
        )
        for views in ("single", "ten")
    }
    assert len(keys) == 14
    assert result_cache.key(bytes(bytearray(RED)), "ten") in keys
    assert result_cache.key(np.asfortranarray(zeros), "ten") in keys


def test_the_least_recently_used_is_evicted_first() -> None:
    cache = ResultCache(2 * ENTRY)
    cache.put(b"a", CachedResult(np.zeros(3), 1))
    cache.put(b"b", CachedResult(np.ones(3), 1))
    assert cache.nbytes == 2 * ENTRY
    assert cache.get(b"a") is not None  # now b is the least recently used
    cache.put(b"c", CachedResult(np.ones(3), 1))
    assert cache.nbytes == 2 * ENTRY
    assert [key for key in (b"a", b"b", b"c") if cache.get(key) is not None] == [b"a", b"c"]


def test_a_result_larger_than_the_cache_is_not_cached() -> None:
    cache = ResultCache(ENTRY)
    cache.put(b"a", CachedResult(np.zeros(3), 1))
    cache.put(b"b", CachedResult(np.zeros(1000), 1))
    assert cache.get(b"b") is None
    assert cache.get(b"a") is not None


def test_a_cached_result_is_read_only() -> None:
    cache, answer = ResultCache(1000), np.zeros(3)
    cache.put(b"a", CachedResult(answer, 1))
    with pytest.raises(ValueError, match="read-only"):
        answer[0] = 1


# The service.


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def client(gate: Gate) -> Iterator[TestClient]:
    with service(lambda *_: fake_backend(gate), SETTINGS) as client:
        yield client


def ran(client: TestClient) -> float:
    """How many batches have been run."""
    return sum(counts(client, "googlenet_batches_total").values())


def test_a_repeated_image_is_answered_without_a_batch(client: TestClient) -> None:
    first = client.post("/classify", files=parts(RED))
    before = ran(client)
    again = client.post("/classify", files=parts(RED), params={"top_k": 2})
    assert [answer.headers["cache-status"] for answer in (first, again)] == [MISS, HIT]
    assert again.json()["predictions"] == first.json()["predictions"][:2]
    assert 'batch;desc="0 rows"' in again.headers["server-timing"]
    assert ran(client) == before
    assert value(client, "googlenet_cache_hits_total") == 1
    assert value(client, "googlenet_cache_bytes") == ENTRY
    assert value(client, "googlenet_images_total", "ok", "single") == 2
    assert value(client, "googlenet_stage_duration_seconds_count", "interactive", "decode") == 1


def test_only_new_images_of_a_request_are_classified(client: TestClient) -> None:
    client.post("/classify", files=parts(LIME))
    before = value(client, "googlenet_queue_wait_seconds_count", "interactive")
    mixed = client.post("/classify", files=parts(RED, LIME, b"text", RED, plain("blue")))
    assert mixed.headers["cache-status"] == MISS
    firsts = [
        result["predictions"][0]["label"] if "predictions" in result else result["error"]["code"]
        for result in mixed.json()["results"]
    ]
    assert firsts == ["red", "green", "unsupported_type", "red", "blue"]
    assert value(client, "googlenet_queue_wait_seconds_count", "interactive") == before + 3
    assert value(client, "googlenet_cache_hits_total") == 1


def test_a_large_image_is_answered_from_the_cache(client: TestClient) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    image = encoded(Image.fromarray(noise))
    assert 256 * 1024 < len(image) < 300_000
    request = {"inputs": [as_json(image)]}
    answers = [client.post("/v2/models/fake/infer", json=request) for _ in range(2)]
    assert [answer.headers["cache-status"] for answer in answers] == [MISS, HIT]


def as_json(image: bytes) -> dict[str, object]:
    data = [base64.b64encode(image).decode()]
    return {"name": "image", "datatype": "BYTES", "shape": [1], "data": data}


def test_an_images_error_is_not_cached(client: TestClient) -> None:
    for _ in range(2):
        assert client.post("/classify", files=parts(b"text")).status_code == 415
    assert value(client, "googlenet_cache_hits_total") == 0
    assert value(client, "googlenet_cache_bytes") == 0


def test_a_cached_result_needs_no_device(client: TestClient, gate: Gate) -> None:
    client.post("/classify", files=parts(RED))
    with gate.shut():
        held = client.post("/classify", files=parts(LIME), headers={"X-Timeout-Ms": "200"})
        assert held.status_code == 504
        assert top(client.post("/classify", files=parts(RED))) == "red"


def test_the_open_inference_protocol_is_answered_from_the_cache(client: TestClient) -> None:
    request = {
        "inputs": [
            {"name": "pixels", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [255, 0, 0]}
        ]
    }
    answers = [client.post("/v2/models/fake/infer", json=request) for _ in range(2)]
    assert [answer.headers["cache-status"] for answer in answers] == [MISS, HIT]
    assert answers[0].json() == answers[1].json()


def test_an_explanation_uses_the_cached_ranking() -> None:
    with service(lambda *_: fake_backend(colour_or_map, explains=True), SETTINGS) as client:
        client.post("/classify", files=parts(RED))
        before = value(client, "googlenet_queue_wait_seconds_count", "interactive")
        assert client.post("/explain", files=parts(RED)).json()["label"] == "red"
        assert (
            value(client, "googlenet_queue_wait_seconds_count", "interactive") == before + 1
        )  # for the map


def test_without_a_cache_there_is_no_cache_status() -> None:
    with service(
        lambda *_: fake_backend(), SETTINGS.model_copy(update={"cache_bytes": 0})
    ) as client:
        for _ in range(2):
            assert "cache-status" not in client.post("/classify", files=parts(RED)).headers
        assert value(client, "googlenet_cache_hits_total") == 0
        assert value(client, "googlenet_cache_bytes") == 0


def test_a_reloaded_model_has_an_empty_cache(world: World) -> None:  # noqa: F811 - the fixture
    with serving(world, cache_bytes=1_000_000) as client:
        client.post("/classify", files=parts(RED))
        assert client.post("/classify", files=parts(RED)).headers["cache-status"] == HIT
        world.add("a", "2")
        assert client.put("/models/a").status_code == 200
        assert client.post("/classify", files=parts(RED)).headers["cache-status"] == MISS

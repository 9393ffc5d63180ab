"""Accuracy on the 100 photos, over HTTP, with concurrent requests."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from conftest import serving, wait_ready

from service.models.store import Store

pytestmark = pytest.mark.slow  # a hundred photos, with all of the views
CLIENTS = 16


@pytest.fixture(scope="module")
def client(real_store: Store) -> Iterator[httpx2.Client]:
    """A client of a process that serves the real weights in float32, with a long timeout."""
    options = {
        "--model": "bvlc_googlenet",
        "--model-store": str(real_store.root),
        "--device": "cpu",
        "--precision": "float32",
        "--timeout-seconds": "600",
        "--max-batch": "8",
    }
    pairs = [word for option in options.items() for word in option]
    with (
        serving(*pairs) as ours,
        httpx2.Client(base_url=f"http://127.0.0.1:{ours.port}", timeout=600) as client,
    ):
        wait_ready(client)
        yield client


def accuracy(client: httpx2.Client, photos: list[Path], views: str) -> tuple[float, float]:
    """Give the top-1 and top-5 accuracy in per cent; a photo's name begins with its class."""

    def ranked(photo: Path) -> list[str]:
        answer = client.post(
            "/classify", params={"views": views}, files={"file": photo.read_bytes()}
        )
        assert answer.status_code == 200, answer.text
        return [one["wnid"] for one in answer.json()["predictions"]]

    with ThreadPoolExecutor(CLIENTS) as threads:
        rankings = [*threads.map(ranked, photos)]
    truths = [photo.name.partition("_")[0] for photo in photos]
    first = sum(truth == ranking[0] for truth, ranking in zip(truths, rankings, strict=True))
    among = sum(truth in ranking for truth, ranking in zip(truths, rankings, strict=True))
    print(f"{views}: top-1 {100 * first / len(photos)}, top-5 {100 * among / len(photos)}")  # noqa: T201 - for `pytest -s`
    return 100 * first / len(photos), 100 * among / len(photos)


@pytest.fixture(scope="module")
def photos(shared: Path) -> list[Path]:
    """The 100 photos, one of each class."""
    found = sorted((shared / "photos").glob("*.JPEG"))
    assert len(found) == 100
    return found


@pytest.mark.parametrize(
    ("views", "top1", "top5"),
    [("single", 79, 92), ("ten", 82, 93)],
)
def test_accuracy_equals_another_implementation_s(
    views: str, top1: float, top5: float, client: httpx2.Client, photos: list[Path]
) -> None:
    first, among = accuracy(client, photos, views)
    assert first == pytest.approx(top1, abs=1)
    assert among == pytest.approx(top5, abs=1)


@pytest.mark.parametrize(
    ("plans", "step", "stops"),
    [
        (("adaptive", "ten"), 1, {1, 2, 6, 10}),
        (("adaptive:paper", "paper"), 5, {4, 8, 16, 32, 64, 144}),
    ],
)
def test_adaptive_views_rank_as_all_do_with_less_than_half_of_them(
    plans: tuple[str, str], step: int, stops: set[int], client: httpx2.Client, photos: list[Path]
) -> None:
    photos = photos[::step]
    answers = {
        views: [
            client.post("/classify", params={"views": views}, files={"file": photo.read_bytes()})
            for photo in photos
        ]
        for views in plans
    }
    firsts = {
        views: [response.json()["predictions"][0]["wnid"] for response in responses]
        for views, responses in answers.items()
    }
    adaptive, whole = plans
    same = sum(map(str.__eq__, firsts[adaptive], firsts[whole]))
    assert same >= len(photos) - 1
    looked_at = [response.json()["view_count"] for response in answers[adaptive]]
    assert {*looked_at} <= stops
    assert sum(looked_at) / len(photos) < 0.4 * max(stops)


def test_accuracy_of_dense_views(client: httpx2.Client, photos: list[Path]) -> None:
    _, among = accuracy(client, photos, "dense")
    assert among >= 90

"""POST /classify for archives, and as lines that come one by one."""

import io
import json
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from conftest import answered, colour_or_map, fake_backend
from starlette.testclient import TestClient
from test_auth import KEY, digests
from test_classify import (
    SETTINGS,
    Gate,
    assert_describes,
    assert_problem,
    gauge,
    parts,
    plain,
    service,
)
from test_connections import hosting
from test_metrics import counts

from service.settings import Settings

LINES = {"accept": "application/x-ndjson"}
ZIP, TAR = "application/zip", "application/x-tar"
NAMES = ("tractor", "koala", "beagle")


def packed(members: Mapping[str, bytes], kind: str = ZIP, mode: str = "w") -> bytes:
    """Pack an archive in memory."""
    file = io.BytesIO()
    if kind == ZIP:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(fileobj=file, mode=mode) as tar:  # type: ignore[call-overload]  # a mode
            for name, data in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def send(
    client: TestClient, kind: str, body: bytes, query: str = "", **headers: str
) -> httpx2.Response:
    sent = {"content-type": kind, **headers}
    return client.post(f"/classify{query}", content=body, headers=sent)


def lines(response: httpx2.Response) -> list[dict[str, Any]]:
    """Read a streamed answer, and sort it by the images' places."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    return sorted(map(json.loads, response.text.splitlines()), key=lambda line: line["index"])


@pytest.fixture(scope="module")
def gate() -> Gate:
    """The executor of `client`."""
    return Gate()


@pytest.fixture(scope="module")
def client(gate: Gate) -> Iterator[TestClient]:
    """A client of a ready service on a fake model, which takes three images."""
    with service(lambda *_: fake_backend(gate)) as client:
        yield client


# By the real weights.


@pytest.fixture(scope="module")
def photos(shared: Path) -> dict[str, bytes]:
    """Three photos by file name."""
    return {f"{name}.jpg": (shared / f"photos/flickr/{name}.jpg").read_bytes() for name in NAMES}


@pytest.mark.parametrize("views", ["single", "adaptive"])
@pytest.mark.parametrize("kind", ["form", ZIP, TAR])
def test_lines_and_archives_say_what_the_ordinary_answer_to_each_image_says(
    kind: str, views: str, real_client: TestClient, photos: dict[str, bytes]
) -> None:
    path = f"/classify?views={views}"
    alone = [real_client.post(path, files={"file": photo}).json() for photo in photos.values()]
    answers = []
    for headers in (LINES, {}):
        if kind == "form":
            files = [("file", part) for part in photos.items()]
            answer = real_client.post(path, files=files, headers=headers)
        else:
            packed_ = packed(photos, kind)
            answer = send(real_client, kind, packed_, f"?views={views}", **headers)
        answers.append(answer)
    streamed, together = lines(answers[0]), answers[1].json()
    assert [line["filename"] for line in streamed] == [*photos]
    assert [line["filename"] for line in together["results"]] == [*photos]
    for expected, line, result in zip(alone, streamed, together["results"], strict=True):
        assert list(line) == ["index", "filename", *expected]
        for found in (line, {**together, **result}):
            assert (found["model"], found["views"]) == (expected["model"], views)
            for ours, theirs in zip(found["predictions"], expected["predictions"], strict=True):
                assert ours["probability"] == pytest.approx(theirs["probability"], abs=1e-6)
                assert ours["wnid"] == theirs["wnid"]
    assert [line["predictions"][0]["label"] for line in streamed] == [*NAMES]


# Lines.


def test_a_line_is_sent_when_its_image_is_ready(gate: Gate) -> None:
    """Text fails at once, while the batch of the image waits for the gate."""
    with hosting(fake_backend(gate), views="single") as hosted, gate.shut():
        url = f"http://127.0.0.1:{hosted.port}/classify"
        files = parts(plain("red"), b"no image")
        with (
            httpx2.Client(timeout=20) as client,
            client.stream("POST", url, files=files, headers=LINES) as response,
        ):
            received = response.iter_lines()
            first = json.loads(next(received))
            assert first["index"] == 1
            assert_describes(first["error"], 415, "unsupported_type")
            gate.open()
            second = json.loads(next(received))
            assert (second["index"], second["predictions"][0]["label"]) == (0, "red")
            assert [*received] == []


def test_each_image_has_one_line_whatever_becomes_of_it(client: TestClient) -> None:
    before = counts(client, "googlenet_rejected_total")
    files = parts(plain("red"), b"", plain("lime")[:-30])
    red, empty, cut = lines(client.post("/classify", files=files, headers=LINES))
    assert red["predictions"][0]["label"] == "red"
    assert list(empty) == list(cut) == ["index", "filename", "error"]
    assert_describes(empty["error"], 400, "malformed")
    assert_describes(cut["error"], 422, "unreadable_image")
    after = counts(client, "googlenet_rejected_total")
    for code in ("malformed", "unreadable_image"):
        key = ("interactive", code)
        assert after[key] == before[key] + 1


def test_a_deadline_is_that_of_all_images(gate: Gate, client: TestClient) -> None:
    with gate.shut():
        files, deadline = parts(plain("red"), plain("blue")), {"x-timeout-ms": "100"}
        late = lines(client.post("/classify?views=single", files=files, headers=LINES | deadline))
    for line in late:
        assert_describes(line["error"], 504, "deadline_exceeded")


@pytest.mark.parametrize("headers", [{}, LINES])
def test_what_the_request_is_refused_with_comes_before_any_line(
    headers: dict[str, str], client: TestClient
) -> None:
    many, slow = parts(*[plain("red")] * 4), parts(plain("red"))
    assert_problem(client.post("/classify", files=many, headers=headers), 413, "too_large")
    unknown = client.post("/classify?model=none", files=slow, headers=headers)
    assert_problem(unknown, 404, "unknown_model")


def test_images_are_admitted_together() -> None:
    """One alone would be: it takes a second of the two that there are."""
    seconds = Settings(model="fake", views="single", timeout_seconds=2)
    with service(lambda *_: fake_backend(seconds_per_row=1, sizes=[1]), seconds) as client:
        files = parts(*[plain("red")] * 3)
        refused = client.post("/classify", files=files, headers=LINES)
    assert_problem(refused, 504, "deadline_exceeded")


def test_an_image_that_has_to_leave_room_is_tried_again() -> None:
    """Behind a job of six seconds twelve more fit, but single ones leave room for another such."""
    gate = Gate()
    settings = Settings(model="fake", views="single", timeout_seconds=20)
    slow = fake_backend(gate, seconds_per_row=1, sizes=[1])
    with service(lambda *_: slow, settings) as client, ThreadPoolExecutor() as threads:
        with gate.shut():
            first = threads.submit(client.post, "/classify", files=parts(*[plain("blue")] * 6))
            assert gate.entered.wait(10)
            files = parts(*[plain("red")] * 12)
            second = threads.submit(client.post, "/classify", files=files, headers=LINES)
            while gauge(client, "googlenet_queue_rows") < 12:
                time.sleep(0.01)
        assert first.result().status_code == 200
        answers = lines(second.result())
    assert [line["predictions"][0]["label"] for line in answers] == ["red"] * 12


def test_a_key_is_charged_once_and_needed() -> None:
    keyed = SETTINGS.model_copy(update={"api_key_hashes": digests(web=KEY)})
    with service(lambda *_: fake_backend(), keyed) as client:
        files = parts(plain("red"), plain("blue"))
        assert_problem(client.post("/classify", files=files, headers=LINES), 401, "unauthorized")
        own = {**LINES, "x-api-key": KEY}
        assert len(lines(client.post("/classify", files=files, headers=own))) == 2
        assert counts(client, "googlenet_key_requests_total")["web", "admitted"] == 1


def test_work_of_a_client_that_disconnects_is_cancelled_and_its_memory_freed() -> None:
    gate = Gate()
    with (
        hosting(fake_backend(gate, sizes=[1]), views="single") as hosted,
        httpx2.Client(base_url=f"http://127.0.0.1:{hosted.port}", timeout=20) as client,
    ):

        def wait(name: str, is_wanted: Callable[[float], bool]) -> None:
            while not is_wanted(
                float(client.get("/metrics").text.split(f"\n{name} ")[1].split()[0])
            ):
                time.sleep(0.01)

        with gate.shut():
            files = parts(b"no image", *[plain("red")] * 3)
            with client.stream("POST", "/classify", files=files, headers=LINES) as response:
                assert json.loads(next(response.iter_lines()))["index"] == 0
                wait("googlenet_queue_rows", lambda rows: rows > 0)
            wait("googlenet_queue_rows", lambda rows: rows == 0)
        gone = 'googlenet_rejected_total{priority="interactive",reason="caller_gone"}'
        wait(gone, lambda count: count == 1)
        again = client.post("/classify", files=parts(plain("red")))
        assert again.json()["predictions"][0]["label"] == "red"
        wait(answered(200), lambda count: count == 2)


# Archives.


def test_members_that_are_no_images_are_left_out(client: TestClient) -> None:
    inner = packed({"red.png": plain("red")})
    members = {"notes.txt": b"text", "a/red.png": plain("red"), "inner.zip": inner,
               "__MACOSX/._red.png": b"text", "b/cut.png": plain("red")[:-30]}  # fmt: skip
    for kind in (ZIP, TAR):
        results = send(client, kind, packed(members, kind)).json()["results"]
        assert [result["filename"] for result in results] == ["a/red.png", "b/cut.png"]
        assert_describes(results[1]["error"], 422, "unreadable_image")


def test_a_member_that_cannot_be_unpacked_fails_alone(client: TestClient) -> None:
    data = packed({"odd.png": plain("red"), "good.png": plain("blue")})
    broken = data.replace(b"odd.png", b"odd.pnG", 1)  # another name than in the directory
    odd, good = lines(send(client, ZIP, broken, **LINES))
    assert_describes(odd["error"], 422, "unreadable_image")
    assert "broken in its archive" in odd["error"]["detail"]
    assert good["predictions"][0]["label"] == "blue"


def test_an_archive_of_one_image_is_explained() -> None:
    with service(lambda *_: fake_backend(colour_or_map, explains=True)) as client:
        whole = packed({"red.png": plain("red")})
        for body, status in ((whole, 200), (whole.replace(b"red.png", b"red.pnG", 1), 422)):
            sent = client.post("/explain", content=body, headers={"content-type": ZIP})
            assert sent.status_code == status, sent.text


REFUSED = {
    "no archive": (ZIP, b"none" * 300, 422, "unreadable_image"),
    "no tar": (TAR, b"none" * 300, 422, "unreadable_image"),
    "a cut tar": (TAR, packed({"a.png": bytes(5000)}, TAR)[:2000], 422, "unreadable_image"),
    "no image": (ZIP, packed({"a.txt": b"a"}), 422, "unreadable_image"),
    "a compressed tar": (TAR, packed({"a.png": b"a"}, TAR, "w:gz"), 415, "unsupported_type"),
    "an empty body": (ZIP, b"", 400, "malformed"),
    "too many images": (ZIP, packed({f"{n}.png": b"a" for n in range(4)}), 413, "too_large"),
    "a bomb": (ZIP, packed({f"{n}.png": bytes(60_000) for n in range(2)}), 413, "too_large"),
    "a large body": (TAR, packed({"a.png": bytes(100_000)}, TAR), 413, "too_large"),
    "a long directory": (ZIP, b"PK\1\2" * 10_001, 413, "too_large"),
}  # fmt: skip


@pytest.mark.parametrize("headers", [{}, LINES])
@pytest.mark.parametrize("sent", REFUSED.values(), ids=REFUSED)
def test_an_archive_is_refused_as_a_whole(
    sent: tuple[str, bytes, int, str], headers: dict[str, str], client: TestClient
) -> None:
    kind, body, status, code = sent
    assert_problem(send(client, kind, body, **headers), status, code)


def test_members_that_are_no_images_are_bounded_too() -> None:
    large = Settings(model="fake", views="single")
    with service(lambda *_: fake_backend(), large) as client:
        empty = packed({f"{n}.txt": b"" for n in range(10_001)}, TAR)
        assert_problem(send(client, TAR, empty), 413, "too_large")


def test_what_an_archive_unpacks_to_is_memory_of_uploads() -> None:
    few = SETTINGS.model_copy(update={"max_inflight_body_bytes": 60_000})
    with service(lambda *_: fake_backend(), few) as client:
        bomb = packed({"a.png": bytes(50_000)})
        assert_problem(send(client, ZIP, bomb), 413, "too_large")
        assert gauge(client, "googlenet_queue_rows") == 0
        assert send(client, ZIP, packed({"a.png": plain("red")})).status_code == 200

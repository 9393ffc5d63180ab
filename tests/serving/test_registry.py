"""Models side by side: requested by name, loaded, replaced and unloaded while they serve."""

import asyncio
import hashlib
import os
import shutil
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, FakeBackend, fake_backend, mean_colour
from starlette.testclient import TestClient
from test_classify import Gate, assert_problem, parts, plain, service
from test_metrics import counts, nonzero, value

from service.api.auth import api_keys
from service.engine.prepared_image import PreparedImage
from service.errors import BadWeights, Conflict, ModelError
from service.models.ensemble import Prediction, Probabilities
from service.models.store import Store
from service.scheduling.types import Batch
from service.server.app import create_app, create_registry
from service.serving.metrics.metrics import Metrics
from service.serving.metrics.worker_collector import resident
from service.serving.shadow import Comparison, compare
from service.settings import Settings

KEY, OTHER = api_keys.new(), api_keys.new()
RED = parts(plain("red"))
ADMIN = {"X-API-Key": KEY}


def reversed_colour(batch: Batch[PreparedImage]) -> list[Probabilities]:
    """Say blue where the other fake says red."""
    return [colours[::-1] for colours in mean_colour(batch)]


@dataclass
class World:
    """A store of models, and what is made of them when they are loaded."""

    folder: Path
    made: dict[str, list[FakeBackend]] = field(default_factory=lambda: defaultdict(list))
    runs: dict[str, Callable[[Batch[PreparedImage]], list[Probabilities]]] = field(
        default_factory=dict
    )
    wrong: dict[str, Exception] = field(default_factory=dict)
    door: dict[str, threading.Event] = field(default_factory=dict)  # to wait for before it loads
    pids: dict[str, int] = field(default_factory=dict)  # if it is not that of this process
    begun: threading.Event = field(default_factory=threading.Event)  # to wait for a door

    def add(self, name: str, version: str = "1") -> None:
        """Put a model into the store, or change it."""
        folder = self.folder / name
        if not folder.exists():
            shutil.copytree(ROOT / "model_store/digits", folder)
        manifest, fresh = folder / "model.toml", folder / "model.part"  # it changes in one step
        text = manifest.read_text("utf-8")
        fresh.write_text(
            "\n".join(
                f'version = "{version}"' if line.startswith("version =") else line
                for line in text.splitlines()
            )
        )
        fresh.replace(manifest)

    def load(self, settings: Settings, _: object = None) -> FakeBackend:
        """Load as the real one does: by the files as they are."""
        name = settings.model
        if door := self.door.get(name):
            self.begun.set()
            assert door.wait(20)
        if error := self.wrong.get(name):
            raise error
        backend = fake_backend(self.runs.get(name, mean_colour))
        store = Store(self.folder, self.folder)
        version = ",".join(store.manifest(member).version for member in name.split(","))
        member = replace(backend.ensemble.members[0], name=name, version=version)
        backend.ensemble = replace(backend.ensemble, members=(member,))
        backend.pid = self.pids.get(name, backend.pid)
        self.made[name].append(backend)
        return backend


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path / "store")
    for name in ("a", "b", "c"):
        made.add(name)
    return made


def settings_of(world: World, **settings: Any) -> Settings:
    """Settings to serve `a` to a key that manages and to one that does not."""
    file = world.folder.parent / "keys.toml"
    digests = [hashlib.sha256(key.encode()).hexdigest() for key in (KEY, OTHER)]
    file.write_text(
        f'[admin]\nsha256 = "{digests[0]}"\nmanages = true\n\n[web]\nsha256 = "{digests[1]}"\n'
    )
    return Settings(
        **{
            "model": "a",
            "views": "ten",
            "model_store": world.folder,
            "api_keys_file": file,
            **settings,
        }
    )


@contextmanager
def serving(world: World, **settings: Any) -> Iterator[TestClient]:
    """Serve `a`, and what else the settings say, with the key that manages."""
    chosen = settings_of(world, **settings)
    with service(world.load, chosen) as client:
        client.headers.update(ADMIN)
        # The probes do not wait for a candidate.
        until(lambda: {*chosen.served} <= {*versions(client), *world.wrong, *world.door})
        yield client


def model_of(client: TestClient, model: str | None = None) -> str:
    """Classify an image, and return which model did."""
    params = {"model": model} if model else {}
    answer = client.post("/classify", params=params, files=RED)
    assert answer.status_code == 200, answer.text
    name: str = answer.json()["model"]
    return name


@contextmanager
def serving_unready(world: World, **settings: Any) -> Iterator[TestClient]:
    """Serve as `serving` does, without waiting for the models."""
    app = create_app(settings_of(world, **settings), load=world.load)
    with TestClient(app, headers=ADMIN) as client:
        yield client


def versions(client: TestClient) -> dict[str, str]:
    return {model["name"]: model["version"] for model in client.get("/models").json()["models"]}


def until(condition: Callable[[], bool]) -> None:
    for _ in range(200):
        if condition():
            return
        threading.Event().wait(0.05)
    pytest.fail("it does not happen")


STALLED = "the device has not answered for 99 s"
NOTICE = f"[i]notice b, a shadow candidate, does not work: {STALLED}\nok\n"


def stall(world: World, name: str) -> None:
    """Let the last loaded backend of a model appear to stand still."""
    world.made[name][-1].stalled = 99.0


# Requests by name.


def test_models_are_served_side_by_side_and_the_first_is_the_default(world: World) -> None:
    with serving(world, additional_models="b:a,c") as client:
        assert [model_of(client, name) for name in (None, "a", "b", "a,c")] == [
            "a",
            "a",
            "b",
            "a,c",
        ]
        assert versions(client).keys() == {"a", "b", "a,c"}
        assert client.get("/models").json()["default"] == "a"


def test_a_model_that_is_not_served_is_unknown(world: World) -> None:
    with serving(world, additional_models="b") as client:
        problem = assert_problem(client.post("/classify?model=c", files=RED), 404, "unknown_model")
        assert problem["detail"] == "there is no model 'c' here; there are a, b"
        wrong = client.post("/classify?model=no+name", files=RED)
        assert_problem(wrong, 404, "unknown_model")


def test_a_request_may_name_a_version(world: World) -> None:
    world.add("a", "7")
    world.add("b@2", "2")
    with serving(world, additional_models="b:b@2") as client:
        assert [model_of(client, name) for name in ("a@7", "b@1", "b@2")] == ["a", "b", "b@2"]
        for unknown in ("a@1", "a@", "c@1", "b@1@2"):
            assert client.post(f"/classify?model={unknown}", files=RED).status_code in {404, 422}


def test_all_named_models_are_loaded_before_it_is_ready(world: World) -> None:
    world.door["b"] = threading.Event()
    with serving_unready(world, additional_models="b") as client:
        until(lambda: client.post("/classify", files=RED).status_code == 200)
        assert client.get("/startupz").status_code == 503
        for name in ("b", "b@1"):
            not_yet = client.post(f"/classify?model={name}", files=RED)
            assert assert_problem(not_yet, 503, "not_ready")["retry_after_ms"] > 0
        world.door["b"].set()
        until(lambda: client.get("/readyz").status_code == 200)
        assert model_of(client, "b") == "b"


def test_a_model_that_cannot_be_loaded_at_the_start_fails_the_probes_until_it_is_loaded(
    world: World,
) -> None:
    world.wrong["b"] = BadWeights("they are broken")
    with serving_unready(world, additional_models="b") as client:
        until(lambda: client.get("/livez").status_code == 503)
        reasons = {*client.get("/readyz").text.splitlines()}
        assert reasons == {"the model could not be loaded; the log says why"}
        del world.wrong["b"]
        assert client.put("/models/b").status_code == 200
        assert client.get("/readyz").status_code == 200


def test_a_model_that_stands_still_fails_the_probes(world: World) -> None:
    with serving(world, additional_models="b") as client:
        stall(world, "b")
        assert client.get("/livez").text == f"{STALLED}\n"


def test_queued_rows_of_all_models_are_summed_up(world: World) -> None:
    gates = {name: Gate() for name in ("a", "b")}
    world.runs.update(gates)
    both = {"additional_models": "b", "views": "single"}
    with serving(world, **both) as client, ThreadPoolExecutor() as threads:
        with gates["a"].shut(), gates["b"].shut():
            for name in gates:
                for _ in range(2):
                    threads.submit(model_of, client, name)
            for gate in gates.values():
                assert gate.entered.wait(10)
            until(lambda: value(client, "googlenet_queue_rows") == 2)  # the others are run
        until(lambda: value(client, "googlenet_queue_rows") == 0)


# Management.


def test_a_model_is_loaded_made_the_default_and_unloaded(world: World) -> None:
    with serving(world) as client:
        loaded = client.put("/models/b")
        assert (loaded.status_code, loaded.json()["name"]) == (200, "b")
        assert [model_of(client, name) for name in (None, "b")] == ["a", "b"]
        assert_problem(client.delete("/models/a"), 409, "conflict")
        assert client.put("/models/b?default=true").status_code == 200
        assert model_of(client) == "b"
        assert client.delete("/models/a").status_code == 204
        assert world.made["a"][0].closed.wait(10)
        assert versions(client).keys() == {"b"}
        assert_problem(client.delete("/models/a"), 404, "unknown_model")
        assert len(world.made["b"]) == 1


@pytest.mark.parametrize(("method", "path"), [("PUT", "/models/b"), ("DELETE", "/models/a")])
def test_a_key_without_manage_permission_changes_nothing(
    method: str, path: str, world: World
) -> None:
    with serving(world, additional_models="b") as client:
        refused = client.request(method, path, headers={"X-API-Key": OTHER})
        assert "manages = true" in assert_problem(refused, 403, "forbidden")["detail"]
        assert versions(client).keys() == {"a", "b"}
    open_to_all = Settings(model="a", additional_models="b", model_store=world.folder)
    with service(world.load, open_to_all) as client:
        assert_problem(client.request(method, path), 403, "forbidden")


@pytest.mark.parametrize("name", ["nothing", "a,nothing"])
def test_a_model_that_is_not_in_the_store_cannot_be_loaded(name: str, world: World) -> None:
    with serving(world) as client:
        assert_problem(client.put(f"/models/{name}"), 404, "unknown_model")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (BadWeights("they are broken"), "they are broken"),
        (ZeroDivisionError(), "the model could not be loaded; the log says why"),
    ],
)
def test_a_failed_load_keeps_the_served_models(
    error: Exception, sentence: str, world: World
) -> None:
    with serving(world) as client:
        world.add("a", "2")
        world.wrong.update(a=error, b=error)
        for name in ("a", "b"):
            problem = assert_problem(client.put(f"/models/{name}"), 422, "cannot_serve")
            assert problem["detail"] == sentence
        assert versions(client) == {"a": "1"}
        assert model_of(client) == "a"
        assert client.get("/readyz").status_code == 200


def test_an_unchanged_model_is_not_reloaded_unless_it_stands_still(
    world: World,
) -> None:
    with serving(world) as client:
        assert client.put("/models/a").status_code == 200
        assert len(world.made["a"]) == 1
        world.made["a"][0].stalled = 99.0
        assert client.put("/models/a").status_code == 200
        assert len(world.made["a"]) == 2
        assert client.get("/livez").status_code == 200


def test_a_replaced_model_finishes_its_running_batches(world: World) -> None:
    gate = Gate()
    world.runs["a"] = gate
    with serving(world) as client, ThreadPoolExecutor() as threads:
        with gate.shut():
            begun = threads.submit(client.post, "/classify", files=RED)
            assert gate.entered.wait(10)
            world.add("a", "2")
            world.runs["a"] = reversed_colour
            assert client.put("/models/a").json()["version"] == "2"
            first, second = world.made["a"]
            after = client.post("/classify", files=RED)
            assert after.json()["predictions"][0]["label"] == "blue"
            assert not first.closed.is_set()
        assert begun.result().json()["predictions"][0]["label"] == "red"
        assert first.closed.wait(10)
        assert not second.closed.is_set()


def test_one_model_is_loaded_at_a_time(world: World) -> None:
    world.door["b"] = threading.Event()
    with serving(world) as client, ThreadPoolExecutor() as threads:
        loading = threads.submit(client.put, "/models/b")
        assert world.begun.wait(10)
        problem = assert_problem(client.put("/models/c"), 409, "conflict")
        assert problem["detail"] == "b is being loaded; one model is loaded at a time"
        world.door["b"].set()
        assert loading.result().status_code == 200


async def test_of_two_loads_at_once_one_is_refused(world: World) -> None:
    """Also if neither has begun to work."""
    settings = Settings(model="a", model_store=world.folder, max_models=2)
    async with create_registry(settings, world.load, Metrics()) as models:
        await happening(lambda: models.readiness.not_loaded_reason is None)
        world.door |= {name: threading.Event() for name in "bc"}
        loads = [asyncio.create_task(models.load(name)) for name in "bc"]
        await asyncio.wait(loads, return_when=asyncio.FIRST_COMPLETED)  # the one that is refused
        for name in "bc":
            world.door[name].set()
        ends = await asyncio.gather(*loads, return_exceptions=True)
        (loaded,) = (name for name, end in zip("bc", ends, strict=True) if end is None)
        assert sum(isinstance(end, Conflict) for end in ends) == 1
        assert models.served.keys() == {"a", loaded}


async def happening(condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(until, condition)


def test_a_model_is_not_unloaded_while_it_is_reloaded(world: World) -> None:
    with serving(world, additional_models="b") as client, ThreadPoolExecutor() as threads:
        world.door["b"] = threading.Event()
        world.begun.clear()
        world.add("b", "2")
        loading = threads.submit(client.put, "/models/b")
        assert world.begun.wait(10)
        assert_problem(client.delete("/models/b"), 409, "conflict")
        world.door["b"].set()
        assert loading.result().json()["version"] == "2"
        assert client.delete("/models/b").status_code == 204


def test_a_model_that_closes_slowly_delays_no_request(world: World) -> None:
    with serving(world, additional_models="b") as client:
        slow = threading.Event()
        backend = world.made["b"][0]
        backend.close = lambda: assert_waits(slow)  # type: ignore[method-assign]
        assert client.delete("/models/b").status_code == 204
        assert model_of(client) == "a"
        slow.set()


def assert_waits(event: threading.Event) -> None:
    assert event.wait(20)


def test_models_beyond_the_limit_are_refused(world: World) -> None:
    with serving(world, additional_models="b", max_models=2) as client:
        assert_problem(client.put("/models/c"), 507, "no_room")
        world.add("b", "2")
        assert client.put("/models/b").status_code == 200  # in the place of another
        assert client.delete("/models/b").status_code == 204
        assert client.put("/models/c").status_code == 200


def test_models_that_take_too_much_memory_are_refused(world: World) -> None:
    """A fake is as large as this process."""
    with serving(world, max_model_bytes=int(1.5 * resident(os.getpid()))) as client:
        problem = assert_problem(client.put("/models/b"), 507, "no_room")
        assert "with b the models would take" in problem["detail"]
        assert world.made["b"][0].closed.wait(10)
        world.add("a", "2")
        assert client.put("/models/a").status_code == 200  # for a while there are two
        assert world.made["a"][0].closed.wait(10)
        assert versions(client) == {"a": "2"}


def test_a_process_that_has_ended_has_no_memory() -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    assert resident(done.pid) == 0


def test_too_little_memory_for_the_first_model_is_logged(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    with serving_unready(world, max_model_bytes=1) as client:
        until(lambda: client.get("/livez").status_code == 503)
    assert "cannot load a: with a the models would take" in caplog.text


# Changed files.


def refresh(client: TestClient) -> None:
    client.portal.call(client.app.state.refresh)  # type: ignore[union-attr, attr-defined]


def test_a_refresh_reloads_only_changed_models(world: World) -> None:
    with serving(world, additional_models="b") as client:
        world.add("b", "2")
        refresh(client)
        until(lambda: versions(client) == {"a": "1", "b": "2"})
        assert {name: len(made) for name, made in world.made.items()} == {"a": 1, "b": 2}


def polled(client: TestClient, world: World) -> None:
    """Wait until the files of all models were compared again: those of `b` are compared last."""
    for _ in "12":  # a first change may be noticed by a comparison that has begun before
        version = str(int(versions(client)["b"]) + 1)
        world.add("b", version)
        until(lambda version=version: versions(client)["b"] == version)


def test_a_failed_reload_is_logged_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    with serving(world, additional_models="b", model_poll_seconds=0.01) as client:
        world.wrong["a"] = BadWeights("they are broken")
        world.add("a", "2")
        until(lambda: "reload of a failed, keeping version 1: they are broken" in caplog.text)
        polled(client, world)
        assert caplog.text.count("reload of a failed") == 1
        assert versions(client)["a"] == "1"
        del world.wrong["a"]
        world.add("a", "3")
        until(lambda: versions(client)["a"] == "3")


def test_a_model_whose_files_are_unreadable_or_deleted_is_served_on(world: World) -> None:
    with serving(world, additional_models="b", model_poll_seconds=0.01) as client:
        manifest = world.folder / "a/model.toml"
        text = manifest.read_text()
        manifest.write_bytes(b"\xff\xfe not TOML")
        polled(client, world)
        assert model_of(client) == "a"
        manifest.write_text(text.replace('version = "1"', 'version = "5"'))
        until(lambda: versions(client)["a"] == "5")
        shutil.rmtree(world.folder / "a")
        polled(client, world)
        assert model_of(client) == "a"


def test_changed_files_wait_while_another_model_is_loaded(world: World) -> None:
    world.door["b"] = threading.Event()
    with serving(world) as client, ThreadPoolExecutor() as threads:
        loading = threads.submit(client.put, "/models/b")
        assert world.begun.wait(10)
        world.add("a", "2")
        refresh(client)
        assert versions(client) == {"a": "1"}
        world.door["b"].set()
        assert loading.result().status_code == 200
        until(lambda: versions(client)["a"] == "2")


def test_a_model_that_is_unloaded_meanwhile_is_not_reloaded(world: World) -> None:
    world.door["c"] = threading.Event()
    with serving(world, additional_models="b") as client, ThreadPoolExecutor() as threads:
        loading = threads.submit(client.put, "/models/c")
        assert world.begun.wait(10)
        world.add("b", "2")
        refresh(client)
        assert client.delete("/models/b").status_code == 204
        world.door["c"].set()
        assert loading.result().status_code == 200
        until(lambda: versions(client).keys() == {"a", "c"})
        assert len(world.made["b"]) == 1


def test_a_reload_without_memory_is_tried_again(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A fake is as large as this process, or as nothing where its process has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    world.pids["a"] = ended.pid
    most = int(1.5 * resident(os.getpid()))
    with serving(world, additional_models="b", max_model_bytes=most) as client:
        del world.pids["a"]
        world.add("a", "2")
        refresh(client)
        until(lambda: "reload of a postponed: with a the models would take" in caplog.text)
        assert client.delete("/models/b").status_code == 204
        refresh(client)
        until(lambda: versions(client) == {"a": "2"})


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("model.toml", "version = '1'"),
        ("labels.tsv", "\tother"),
        ("weights.safetensors.sha256", "other"),
        ("openvino_int8.zip.sha256", "0"),
    ],
)
def test_the_files_of_a_model_determine_its_fingerprint(file: str, text: str, world: World) -> None:
    store = Store(world.folder, world.folder)
    before = store.fingerprint("a")
    assert store.fingerprint("a") == before != store.fingerprint("nothing")
    (world.folder / "a" / file).write_text(text)
    assert store.fingerprint("a") not in {before, None}
    assert store.fingerprint("nothing") is None


def test_a_folder_of_a_version_holds_that_version(world: World) -> None:
    world.add("a@2", "3")
    with pytest.raises(ModelError, match=r"the manifest of 'a@2' is of version '3'"):
        Store(world.folder, world.folder).manifest("a@2")


# Metrics.


def test_metrics_have_the_served_models_only(world: World) -> None:
    names = ("googlenet_capacity_rows_per_second", "googlenet_model_info",
             "googlenet_model_load_seconds", "googlenet_model_warmup_seconds")  # fmt: skip
    with serving(world) as client:

        def models() -> list[set[str]]:
            return [
                {label for labels in counts(client, name) for label in labels if label in "abc"}
                for name in names
            ]

        assert models() == [{"a"}] * 4
        client.put("/models/b")
        assert models() == [{"a", "b"}] * 4
        assert model_of(client, "b") == "b"
        start = "googlenet_worker_process_start_time_seconds"
        assert counts(client, start).keys() == {("a",), ("b",)}
        client.put("/models/b?default=true")
        client.delete("/models/a")
        assert models() == [{"b"}] * 4
        assert counts(client, start).keys() == {("b",)}


def test_batches_of_an_unloaded_model_are_counted(world: World) -> None:
    gate = Gate()
    world.runs["b"] = gate
    with serving(world, additional_models="b") as client, ThreadPoolExecutor() as threads:
        with gate.shut():
            begun = threads.submit(model_of, client, "b")
            assert gate.entered.wait(10)
            assert client.delete("/models/b").status_code == 204
        assert begun.result() == "b"
        assert nonzero(client, "googlenet_batches_total")
        assert world.made["b"][0].closed.wait(10)


# A candidate beside the default.


def shadowed(client: TestClient) -> dict[str, float]:
    images = nonzero(client, "googlenet_shadow_images_total")
    return {outcome: count for (outcome,), count in images.items()}


def test_a_candidate_gets_its_share_and_is_compared(world: World) -> None:
    world.runs["b"] = reversed_colour
    with serving(world, shadow="b", shadow_share=0.5) as client:
        assert client.get("/models").json()["shadow"] == {"model": "b", "share": 0.5}
        for _ in range(4):
            assert model_of(client) == "a"
            until(lambda: value(client, "googlenet_requests_in_flight") == 1)
        until(lambda: shadowed(client) == {"differed": 2})
        assert value(client, "googlenet_shadow_distance_sum") == pytest.approx(2, abs=0.1)
        assert model_of(client, "b") == "b"  # that is no business of the default's
        assert client.put("/models/c?shadow=1").status_code == 200
        assert model_of(client) == "a"
        until(lambda: shadowed(client) == {"differed": 2, "agreed": 1})
        assert client.put("/models/c?shadow=0").status_code == 200
        assert client.get("/models").json()["shadow"] is None
        assert client.put("/models/c?shadow=1&default=true").status_code == 200
        assert client.get("/models").json()["shadow"] is None  # it is the default now


def test_a_failed_candidate_fails_no_probe_and_is_reported(world: World) -> None:
    with serving(world, shadow="b", shadow_share=1.0) as client:
        stall(world, "b")
        for probe in ("/livez", "/readyz"):
            assert client.get(probe).text == "ok\n"
            assert client.get(f"{probe}?verbose").text.endswith(NOTICE)
        assert client.get("/v2/health/live").status_code == 200
        assert model_of(client) == "a"


def test_a_candidate_that_is_replaced_while_it_fails_is_excluded_from_probes_until_it_is_loaded(
    world: World,
) -> None:
    with serving(world, shadow="b", shadow_share=1.0) as client:
        stall(world, "b")
        assert client.put("/models/c?shadow=1").status_code == 200
        assert client.get("/livez").status_code == 200
        assert client.get("/readyz?verbose").text.endswith(NOTICE)
        stall(world, "c")
        assert client.get("/livez").status_code == 200  # both are excluded
        assert client.put("/models/b").status_code == 200
        stall(world, "b")
        assert client.get("/livez").text == f"{STALLED}\n"


def test_a_former_candidate_that_recovers_stays_excluded_until_it_is_loaded(
    world: World,
) -> None:
    with serving(world, shadow="b", shadow_share=1.0) as client:
        stall(world, "b")
        assert client.put("/models/c?shadow=1").status_code == 200
        world.made["b"][0].stalled = 0.0
        assert "b, a shadow candidate" not in client.get("/livez?verbose").text
        assert client.put("/models/b").status_code == 200
        assert len(world.made["b"]) == 1
        stall(world, "b")
        assert client.get("/livez").status_code == 503


def test_a_candidate_that_cannot_be_loaded_at_the_start_fails_no_probe(world: World) -> None:
    world.wrong["b"] = ModelError("it is broken")
    with serving(world, shadow="b") as client:  # which waits until it is ready
        assert client.get("/livez").status_code == 200
        assert model_of(client) == "a"
        assert client.put("/models/c?shadow=1").status_code == 200
        for probe in ("/livez", "/readyz", "/startupz"):
            assert client.get(probe).status_code == 200


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("b", ["b?default=true"]),
        ("b", ["c?shadow=1"]),
        ("b", ["b?shadow=0"]),
        ("a", ["a?shadow=1", "c?shadow=1", "c?default=true"]),  # a default is never a candidate
    ],
)
def test_probes_include_a_model_that_is_a_candidate_no_longer(
    name: str, changes: list[str], world: World
) -> None:
    with serving(world, shadow="b", shadow_share=1.0) as client:
        for change in changes:
            assert client.put(f"/models/{change}").status_code == 200
        assert client.get("/livez").status_code == 200
        stall(world, name)
        assert client.get("/livez").status_code == 503


def test_a_busy_or_unloaded_candidate_delays_no_request(world: World) -> None:
    gate = Gate()
    world.runs["b"] = gate
    with serving(world, shadow="b", shadow_share=1.0) as client:
        with gate.shut():
            assert model_of(client) == "a"
            assert gate.entered.wait(10)
            assert (
                client.post("/classify", files=parts(plain("red"), plain("blue"))).status_code
                == 200
            )
            until(lambda: shadowed(client) == {"skipped": 2})
        until(lambda: shadowed(client) == {"skipped": 2, "agreed": 1})
        world.runs["b"] = broken  # a bug, not an error of the service
        world.add("b", "2")
        assert client.put("/models/b").status_code == 200
        assert model_of(client) == "a"
        until(lambda: shadowed(client) == {"skipped": 2, "agreed": 1, "failed": 1})
        assert client.put("/models/c?shadow=0").status_code == 200  # which ends another's
        assert client.get("/models").json()["shadow"] == {"model": "b", "share": 1.0}
        assert client.post("/classify", files=parts(b"no image")).status_code == 415
        client.delete("/models/b")
        assert client.get("/models").json()["shadow"] is None
        assert model_of(client) == "a"
        world.runs["b"] = gate
        with gate.shut():
            client.put("/models/b?shadow=1")
            assert model_of(client) == "a"
            assert gate.entered.wait(10)  # and ends with the service


def broken(batch: Batch[PreparedImage]) -> list[Probabilities]:
    return [np.arange(9.0) for _ in batch.slices]  # there are three labels


def test_rankings_of_other_labels_can_be_compared() -> None:
    first = Prediction("beagle", "n1", 0, 0.75), Prediction("cat", "n2", 1, 0.25)
    other = Prediction("cat", "n2", 0, 0.5), Prediction("dog", None, 1, 0.5)
    assert compare(first, other) == Comparison("differed", 0.75)
    assert compare(first, (*first[::-1], *other)).outcome == "differed"
    assert compare(first, first) == Comparison("agreed", 0.0)


# The end during a load.


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_model_that_is_loaded_when_the_service_ends_is_closed(name: str, world: World) -> None:
    world.door[name] = threading.Event()
    with serving_unready(world, additional_models="b"):
        assert world.begun.wait(10)
    world.door[name].set()
    until(lambda: all(backend.closed.is_set() for made in world.made.values() for backend in made))
    until(lambda: name in world.made)


async def test_a_load_continues_after_its_client_disconnects(world: World) -> None:
    world.door["b"] = threading.Event()
    settings = Settings(model="a", model_store=world.folder)
    async with create_registry(settings, world.load, Metrics()) as models:
        await happening(lambda: models.readiness.not_loaded_reason is None)
        asking = asyncio.create_task(models.load("b"))
        await asyncio.to_thread(world.begun.wait, 10)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        world.door["b"].set()
        await happening(lambda: "b" in models.served)

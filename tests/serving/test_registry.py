"""Models side by side: asked by name, loaded, replaced, preferred and let go while they serve."""

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


@contextmanager
def serving(world: World, **settings: Any) -> Iterator[TestClient]:
    """Serve `a`, and what else the settings say, to a key that manages and one that does not."""
    file = world.folder.parent / "keys.toml"
    digests = [hashlib.sha256(key.encode()).hexdigest() for key in (KEY, OTHER)]
    file.write_text(
        f'[admin]\nsha256 = "{digests[0]}"\nmanages = true\n\n[web]\nsha256 = "{digests[1]}"\n'
    )
    chosen = Settings(
        **{"model": "a", "model_store": world.folder, "api_keys_file": file, **settings}
    )
    with service(world.load, chosen) as client:
        client.headers.update(ADMIN)
        # A candidate is not waited for by the probes.
        until(lambda: {*chosen.served} <= {*versions(client), *world.wrong, *world.door})
        yield client


def asked(client: TestClient, model: str | None = None) -> str:
    """Tell which model answers."""
    params = {"model": model} if model else {}
    answer = client.post("/classify", params=params, files=RED)
    assert answer.status_code == 200, answer.text
    name: str = answer.json()["model"]
    return name


@contextmanager
def serving_unready(world: World, **settings: Any) -> Iterator[TestClient]:
    """Serve as `serving` does, to the key that manages, and wait for nothing."""
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    file = world.folder.parent / "keys.toml"
    file.write_text(f'[admin]\nsha256 = "{digest}"\nmanages = true\n')
    chosen = Settings(
        **{"model": "a", "model_store": world.folder, "api_keys_file": file, **settings}
    )
    with TestClient(create_app(chosen, load=world.load), headers=ADMIN) as client:
        yield client


def versions(client: TestClient) -> dict[str, str]:
    return {one["name"]: one["version"] for one in client.get("/models").json()["models"]}


def until(condition: Callable[[], bool]) -> None:
    for _ in range(200):
        if condition():
            return
        threading.Event().wait(0.05)
    pytest.fail("it does not happen")


# Asked by name.


def test_models_are_served_side_by_side_and_the_first_is_the_default(world: World) -> None:
    with serving(world, additional_models="b:a,c") as client:
        assert [asked(client, name) for name in (None, "a", "b", "a,c")] == ["a", "a", "b", "a,c"]
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
        assert [asked(client, name) for name in ("a@7", "b@1", "b@2")] == ["a", "b", "b@2"]
        for unknown in ("a@1", "a@", "c@1", "b@1@2"):
            assert client.post(f"/classify?model={unknown}", files=RED).status_code in {404, 422}


def test_all_named_models_are_loaded_before_it_is_ready(world: World) -> None:
    world.door["b"] = threading.Event()
    settings = Settings(model="a", additional_models="b", model_store=world.folder)
    with TestClient(create_app(settings, load=world.load)) as client:
        until(lambda: client.post("/classify", files=RED).status_code == 200)
        assert client.get("/startupz").status_code == 503
        not_yet = client.post("/classify?model=b", files=RED)
        assert assert_problem(not_yet, 503, "not_ready")["retry_after_ms"] > 0
        world.door["b"].set()
        until(lambda: client.get("/readyz").status_code == 200)
        assert asked(client, "b") == "b"


def test_one_that_cannot_be_loaded_at_the_start_fails_the_probes(world: World) -> None:
    world.wrong["b"] = BadWeights("they are broken")
    settings = Settings(model="a", additional_models="b", model_store=world.folder)
    with TestClient(create_app(settings, load=world.load)) as client:
        until(lambda: client.get("/livez").status_code == 503)
        told = {*client.get("/readyz").text.splitlines()}
        assert told == {"the model could not be loaded; the log says why"}


def test_one_that_stands_still_fails_the_probes(world: World) -> None:
    with serving(world, additional_models="b") as client:
        world.made["b"][0].stalled = 99.0
        assert client.get("/livez").text == "the device has not answered for 99 s\n"


def test_what_waits_is_summed_up(world: World) -> None:
    gates = {name: Gate() for name in ("a", "b")}
    world.runs.update(gates)
    one = {"additional_models": "b", "views": "single"}
    with serving(world, **one) as client, ThreadPoolExecutor() as threads:
        with gates["a"].shut(), gates["b"].shut():
            for name in gates:
                for _ in range(2):
                    threads.submit(asked, client, name)
            for gate in gates.values():
                assert gate.entered.wait(10)
            until(lambda: value(client, "googlenet_queue_rows") == 2)  # the others are run
        until(lambda: value(client, "googlenet_queue_rows") == 0)


# Changed by those who may.


def test_a_model_is_loaded_preferred_and_let_go(world: World) -> None:
    with serving(world) as client:
        loaded = client.put("/models/b")
        assert (loaded.status_code, loaded.json()["name"]) == (200, "b")
        assert [asked(client, name) for name in (None, "b")] == ["a", "b"]
        assert_problem(client.delete("/models/a"), 409, "conflict")
        assert client.put("/models/b?default=true").status_code == 200
        assert asked(client) == "b"
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
def test_what_cannot_be_loaded_leaves_what_is_served_as_it_is(
    error: Exception, sentence: str, world: World
) -> None:
    with serving(world) as client:
        world.add("a", "2")
        world.wrong.update(a=error, b=error)
        for name in ("a", "b"):
            problem = assert_problem(client.put(f"/models/{name}"), 422, "cannot_serve")
            assert problem["detail"] == sentence
        assert versions(client) == {"a": "1"}
        assert asked(client) == "a"
        assert client.get("/readyz").status_code == 200


def test_a_model_whose_files_are_the_same_is_not_loaded_anew_unless_it_stands_still(
    world: World,
) -> None:
    with serving(world) as client:
        assert client.put("/models/a").status_code == 200
        assert len(world.made["a"]) == 1
        world.made["a"][0].stalled = 99.0
        assert client.put("/models/a").status_code == 200
        assert len(world.made["a"]) == 2
        assert client.get("/livez").status_code == 200


def test_the_one_before_ends_what_it_has_begun(world: World) -> None:
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


def test_of_two_loads_at_once_one_is_refused(world: World) -> None:
    """Also if neither has begun to work."""

    async def main() -> None:
        settings = Settings(model="a", model_store=world.folder, max_models=2)
        async with create_registry(settings, world.load, Metrics()) as models:
            await happening(lambda: models.not_loaded_reason is None)
            loads = (models.load("b"), models.load("c"))
            ends = await asyncio.gather(*loads, return_exceptions=True)
            (loaded,) = (name for name, end in zip("bc", ends, strict=True) if end is None)
            assert sum(isinstance(end, Conflict) for end in ends) == 1
            assert models.served.keys() == {"a", loaded}

    asyncio.run(main())


async def happening(condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(until, condition)


def test_a_model_is_not_let_go_while_it_is_loaded_anew(world: World) -> None:
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


def test_what_could_not_be_loaded_at_the_start_can_be_later(world: World) -> None:
    world.wrong["b"] = BadWeights("they are broken")
    with serving_unready(world, additional_models="b") as client:
        until(lambda: client.get("/livez").status_code == 503)
        del world.wrong["b"]
        assert client.put("/models/b").status_code == 200
        assert client.get("/readyz").status_code == 200


def test_a_model_that_closes_slowly_delays_no_request(world: World) -> None:
    with serving(world, additional_models="b") as client:
        slow = threading.Event()
        backend = world.made["b"][0]
        backend.close = lambda: assert_waits(slow)  # type: ignore[method-assign]
        assert client.delete("/models/b").status_code == 204
        assert asked(client) == "a"
        slow.set()


def assert_waits(event: threading.Event) -> None:
    assert event.wait(20)


def test_more_models_than_may_be_are_refused(world: World) -> None:
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
    settings = Settings(model="a", model_store=world.folder, max_model_bytes=1)
    with TestClient(create_app(settings, load=world.load)) as client:
        until(lambda: client.get("/livez").status_code == 503)
    assert "cannot load a: with a the models would take" in caplog.text


# Changed with their files.


def refresh(client: TestClient) -> None:
    client.portal.call(client.app.state.refresh)  # type: ignore[union-attr, attr-defined]


def test_a_refresh_reloads_only_changed_models(world: World) -> None:
    with serving(world, additional_models="b") as client:
        world.add("b", "2")
        refresh(client)
        until(lambda: versions(client) == {"a": "1", "b": "2"})
        assert {name: len(made) for name, made in world.made.items()} == {"a": 1, "b": 2}


def test_it_looks_by_itself_if_it_is_to(world: World) -> None:
    with serving(world, model_poll_seconds=0.05) as client:
        world.add("a", "2")
        until(lambda: versions(client) == {"a": "2"})


def test_a_failed_reload_is_logged_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    with serving(world, model_poll_seconds=0.01) as client:
        world.wrong["a"] = BadWeights("they are broken")
        world.add("a", "2")
        until(lambda: "reload of a failed, keeping version 1: they are broken" in caplog.text)
        threading.Event().wait(0.2)
        assert caplog.text.count("reload of a failed") == 1
        assert versions(client) == {"a": "1"}
        del world.wrong["a"]
        world.add("a", "3")
        until(lambda: versions(client) == {"a": "3"})
        shutil.rmtree(world.folder / "a")  # what is there no more is served on
        threading.Event().wait(0.1)
        assert asked(client) == "a"


def test_while_another_is_loaded_changed_files_have_to_wait(world: World) -> None:
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


def test_one_that_is_let_go_meanwhile_is_not_loaded_anew(world: World) -> None:
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


def test_changed_files_for_which_there_is_no_room_are_tried_again(
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


def test_files_that_cannot_be_read_change_nothing(world: World) -> None:
    with serving(world, model_poll_seconds=0.02) as client:
        manifest = world.folder / "a/model.toml"
        text = manifest.read_text()
        manifest.write_bytes(b"\xff\xfe not TOML")
        threading.Event().wait(0.2)
        assert asked(client) == "a"
        manifest.write_text(text.replace('version = "1"', 'version = "5"'))
        until(lambda: versions(client) == {"a": "5"})


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("model.toml", "version = '1'"),
        ("labels.tsv", "\tother"),
        ("weights.safetensors.sha256", "other"),
        ("openvino_int8.zip.sha256", "0"),
    ],
)
def test_files_that_make_a_model_another_change_its_stamp(
    file: str, text: str, world: World
) -> None:
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


# Told in the metrics.


def test_the_metrics_tell_of_what_is_served_and_of_nothing_else(world: World) -> None:
    names = ("googlenet_capacity_rows_per_second", "googlenet_model_info",
             "googlenet_model_load_seconds", "googlenet_model_warmup_seconds")  # fmt: skip
    with serving(world) as client:

        def told() -> list[set[str]]:
            found = [set(counts(client, name)) for name in names]
            return [
                {model for labels in one for model in labels if model in "abc"} for one in found
            ]

        assert told() == [{"a"}] * 4
        client.put("/models/b")
        assert told() == [{"a", "b"}] * 4
        assert asked(client, "b") == "b"
        start = "googlenet_worker_process_start_time_seconds"
        assert counts(client, start).keys() == {("a",), ("b",)}
        client.put("/models/b?default=true")
        client.delete("/models/a")
        assert told() == [{"b"}] * 4
        assert counts(client, start).keys() == {("b",)}


def test_batches_of_a_model_that_was_let_go_are_counted_still(world: World) -> None:
    gate = Gate()
    world.runs["b"] = gate
    with serving(world, additional_models="b") as client, ThreadPoolExecutor() as threads:
        with gate.shut():
            begun = threads.submit(asked, client, "b")
            assert gate.entered.wait(10)
            assert client.delete("/models/b").status_code == 204
        assert begun.result() == "b"
        assert nonzero(client, "googlenet_batches_total")
        assert world.made["b"][0].closed.wait(10)


# A candidate beside the default.


def shadowed(client: TestClient) -> dict[str, float]:
    found = nonzero(client, "googlenet_shadow_images_total")
    return {outcome: count for (outcome,), count in found.items()}


def test_a_candidate_gets_its_share_and_is_compared(world: World) -> None:
    world.runs["b"] = reversed_colour
    with serving(world, shadow="b", shadow_share=0.5) as client:
        assert client.get("/models").json()["shadow"] == {"model": "b", "share": 0.5}
        for _ in range(4):
            assert asked(client) == "a"
            until(lambda: value(client, "googlenet_requests_in_flight") == 1)
        until(lambda: shadowed(client) == {"differed": 2})
        assert value(client, "googlenet_shadow_distance_sum") == pytest.approx(2, abs=0.1)
        assert asked(client, "b") == "b"  # that is no business of the default's
        assert client.put("/models/c?shadow=1").status_code == 200
        assert asked(client) == "a"
        until(lambda: shadowed(client) == {"differed": 2, "agreed": 1})
        assert client.put("/models/c?shadow=0").status_code == 200
        assert client.get("/models").json()["shadow"] is None
        assert client.put("/models/c?shadow=1&default=true").status_code == 200
        assert client.get("/models").json()["shadow"] is None  # it is the default now


def test_a_failed_candidate_fails_no_probe_and_is_reported(world: World) -> None:
    with serving(world, shadow="b", shadow_share=1.0) as client:
        world.made["b"][0].stalled = 99.0
        why = "the device has not answered for 99 s"
        told = f"[i]notice b, a shadow candidate, does not work: {why}\nok\n"
        for probe in ("/livez", "/readyz"):
            assert client.get(probe).text == "ok\n"
            assert client.get(f"{probe}?verbose").text.endswith(told)
        assert client.get("/v2/health/live").status_code == 200
        assert asked(client) == "a"


def test_a_candidate_that_is_replaced_while_it_stands_still_fails_no_probe_either(
    world: World,
) -> None:
    """Once it is reloaded, probes include it like any other model."""
    with serving(world, shadow="b", shadow_share=1.0) as client:
        world.made["b"][0].stalled = 99.0
        assert client.put("/models/c?shadow=1").status_code == 200
        assert client.get("/livez").status_code == 200
        why = "the device has not answered for 99 s"
        told = f"[i]notice b, a shadow candidate, does not work: {why}\nok\n"
        assert client.get("/readyz?verbose").text.endswith(told)
        world.made["c"][0].stalled = 99.0
        assert client.get("/livez").status_code == 200  # both are excused
        assert client.put("/models/b").status_code == 200
        world.made["b"][1].stalled = 99.0
        assert client.get("/livez").text == f"{why}\n"


def test_a_former_candidate_that_recovers_stays_excluded_until_it_is_loaded(
    world: World,
) -> None:
    with serving(world, shadow="b", shadow_share=1.0) as client:
        world.made["b"][0].stalled = 99.0
        assert client.put("/models/c?shadow=1").status_code == 200
        world.made["b"][0].stalled = 0.0
        assert "b, a shadow candidate" not in client.get("/livez?verbose").text
        assert client.put("/models/b").status_code == 200
        assert len(world.made["b"]) == 1
        world.made["b"][0].stalled = 99.0
        assert client.get("/livez").status_code == 503


def test_a_candidate_that_cannot_be_loaded_at_the_start_fails_no_probe(world: World) -> None:
    world.wrong["b"] = ModelError("it is broken")
    with serving(world, shadow="b") as client:  # which waits until it is ready
        assert client.get("/livez").status_code == 200
        assert asked(client) == "a"
        assert client.put("/models/c?shadow=1").status_code == 200
        for probe in ("/livez", "/readyz", "/startupz"):
            assert client.get(probe).status_code == 200


def test_a_candidate_that_works_when_it_is_replaced_is_one_as_any_other(world: World) -> None:
    with serving(world, shadow="b", shadow_share=1.0) as client:
        assert client.put("/models/c?shadow=1").status_code == 200
        world.made["b"][0].stalled = 99.0
        assert client.get("/livez").status_code == 503


def test_a_default_that_was_to_be_its_own_candidate_is_not_excused_for_it(world: World) -> None:
    with serving(world) as client:
        assert client.put("/models/a?shadow=1").status_code == 200
        world.made["a"][0].stalled = 99.0
        assert client.put("/models/c?shadow=1").status_code == 200
        assert client.put("/models/c?default=true").status_code == 200
        assert client.get("/livez").status_code == 503


def test_a_healthy_former_candidate_is_included_in_probes(world: World) -> None:
    with serving(world, shadow="b", shadow_share=1.0) as client:
        world.made["b"][0].stalled = 99.0
        assert client.get("/livez").status_code == 200
        world.made["b"][0].stalled = 0.0
        assert client.put("/models/b?shadow=0").status_code == 200
        world.made["b"][0].stalled = 99.0
        assert client.get("/livez").status_code == 503


def test_a_default_is_never_excused(world: World) -> None:
    with serving(world, shadow="b", shadow_share=1.0) as client:
        assert client.put("/models/b?default=true").status_code == 200
        world.made["b"][0].stalled = 99.0
        assert client.get("/livez").status_code == 503


def test_a_busy_or_unloaded_candidate_delays_no_request(world: World) -> None:
    gate = Gate()
    world.runs["b"] = gate
    with serving(world, shadow="b", shadow_share=1.0) as client:
        with gate.shut():
            assert asked(client) == "a"
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
        assert asked(client) == "a"
        until(lambda: shadowed(client) == {"skipped": 2, "agreed": 1, "failed": 1})
        assert client.put("/models/c?shadow=0").status_code == 200  # which ends another's
        assert client.get("/models").json()["shadow"] == {"model": "b", "share": 1.0}
        assert client.post("/classify", files=parts(b"no image")).status_code == 415
        client.delete("/models/b")
        assert client.get("/models").json()["shadow"] is None
        assert asked(client) == "a"
        world.runs["b"] = gate
        with gate.shut():
            client.put("/models/b?shadow=1")
            assert asked(client) == "a"
            assert gate.entered.wait(10)  # and ends with the service


def broken(batch: Batch[PreparedImage]) -> list[Probabilities]:
    return [np.arange(9.0) for _ in batch.slices]  # there are three labels


def test_rankings_of_other_labels_can_be_compared() -> None:
    first = Prediction("beagle", "n1", 0, 0.75), Prediction("cat", "n2", 1, 0.25)
    other = Prediction("cat", "n2", 0, 0.5), Prediction("dog", None, 1, 0.5)
    assert compare(first, other) == Comparison("differed", 0.75)
    assert compare(first, (*first[::-1], *other)).outcome == "differed"
    assert compare(first, first) == Comparison("agreed", 0.0)


# Ended at any moment.


@pytest.mark.parametrize("name", ["a", "b"])
def test_what_is_loaded_when_the_service_ends_is_closed(name: str, world: World) -> None:
    world.door[name] = threading.Event()
    settings = Settings(model="a", additional_models="b", model_store=world.folder)
    with TestClient(create_app(settings, load=world.load)):
        threading.Event().wait(0.1)
    world.door[name].set()
    until(lambda: all(one.closed.is_set() for made in world.made.values() for one in made))
    until(lambda: name in world.made)


def test_a_load_continues_after_its_client_disconnects(world: World) -> None:
    async def main() -> None:
        world.door["b"] = threading.Event()
        settings = Settings(model="a", model_store=world.folder)
        async with create_registry(settings, world.load, Metrics()) as models:
            await happening(lambda: models.not_loaded_reason is None)
            asking = asyncio.create_task(models.load("b"))
            await asyncio.to_thread(world.begun.wait, 10)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            world.door["b"].set()
            await happening(lambda: "b" in models.served)

    asyncio.run(main())

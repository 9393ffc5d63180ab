"""The worker as a real process."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from conftest import ROOT, wait_ready
from fake_worker import (
    BOUNDS,
    TIMEOUT,
    batch_of,
    small_settings,
)
from starlette.testclient import TestClient
from test_bench import children
from test_classify import assert_problem, parts

from service.engine import engine
from service.engine.engine import Engine
from service.errors import (
    InferenceFailed,
    ModelError,
    TooLarge,
    UnreadableImage,
    UnsupportedType,
)
from service.imaging.image_decoder import Bounds
from service.models.store import Store
from service.scheduling.cost_model import Key
from service.scheduling.types import Batch, Slice
from service.server.app import create_app
from service.settings import Settings
from service.worker import child_process, client
from service.worker.channel import EXITED
from service.worker.child_process import CLOSE_SECONDS, ChildProcess
from service.worker.client import RemoteHandle, WorkerClient


@pytest.fixture(scope="module")
def small(real_store: Store) -> Settings:
    """Settings that load the real weights quickly."""
    return small_settings(real_store)


@dataclass
class Real:
    """A worker, and a way to wait in its one loop."""

    worker: WorkerClient
    wait: Callable[[Coroutine[Any, Any, Any]], Any]

    def prepared(self, image: bytes, plan: str = "single", bounds: Bounds = BOUNDS) -> RemoteHandle:
        """Prepare an image."""
        (handle,) = self.wait(self.worker.prepare(image, plan, bounds))
        return cast("RemoteHandle", handle)

    def run(self, batch: Batch[RemoteHandle]) -> list[np.ndarray]:
        """Run a batch."""

        async def run() -> list[np.ndarray]:
            return [*await self.worker.executors[0].run(batch)]

        return cast("list[np.ndarray]", self.wait(run()))


@pytest.fixture(scope="module")
def real(small: Settings) -> Iterator[Real]:
    """A real worker."""
    with closing_worker(small) as ours, asyncio.Runner() as runner:
        yield Real(ours, runner.run)


@contextmanager
def closing_worker(settings: Settings) -> Iterator[WorkerClient]:
    with contextlib.closing(client.load(settings, Future())) as ours:
        yield ours
    assert not ours.alive


@pytest.fixture(scope="module")
def local(small: Settings) -> Engine:
    """The same engine in this process."""
    return engine.load(small)


@pytest.mark.parametrize("plan", ["single", "ten", "dense", "adaptive"])
def test_worker_results_equal_the_engine_s(
    plan: str, real: Real, local: Engine, beagle: bytes
) -> None:
    plans = local.ensemble.plans(plan)
    cut, handle = local.prepare(beagle, plan, BOUNDS)[0], real.prepared(beagle, plan)
    answers = []
    rows = len(plans[0].views)
    for start in range(0, rows, 4):
        stop = min(start + 4, rows)
        mine, other = (
            Batch(Key(0, plans[0].side), 4, (Slice(payload, start, stop),), "full")
            for payload in (cut, handle)
        )
        (expected,), (answer,) = local.executors[0].run(mine), real.run(other)
        assert answer.dtype == expected.dtype
        np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-6)
        answers.append(answer)
    (first, *_) = real.worker.ensemble.rank([answers], plans, 5)
    assert first.label == "beagle"


def test_images_in_one_batch_are_not_mixed_up(real: Real, local: Engine, shared: Path) -> None:
    photos = [
        (shared / f"photos/flickr/{name}.jpg").read_bytes()
        for name in ("beagle", "tractor", "koala")
    ]
    mine = local.executors[0].run(
        batch_of([local.prepare(photo, "single", BOUNDS)[0] for photo in photos], 4, rows=1)
    )
    other = real.run(batch_of([real.prepared(photo) for photo in photos], 4, rows=1))
    np.testing.assert_allclose(other, mine, rtol=0, atol=1e-6)
    assert len({int(np.argmax(one)) for one in other}) == 3


def test_worker_has_the_engine_s_ensemble(real: Real, local: Engine) -> None:
    theirs, ours = real.worker.ensemble, local.ensemble
    same = replace(theirs, costs=ours.costs, warmup_seconds=ours.warmup_seconds)
    assert same == ours
    assert {key: curve.sizes for key, curve in theirs.costs.curves.items()} == {
        key: curve.sizes for key, curve in ours.costs.curves.items()
    }
    assert theirs.warmup_seconds > 0
    assert [executor.device for executor in real.worker.executors] == [
        executor.device for executor in local.executors
    ]


@pytest.mark.parametrize(
    ("kind", "nbytes", "max_pixels"),
    [(UnsupportedType, 2, 10**8), (UnreadableImage, 9999, 10**8), (TooLarge, 9999, 1000)],
)
def test_image_errors_equal_the_engine_s(  # noqa: PLR0913, PLR0917 - a table
    kind: type[Exception], nbytes: int, max_pixels: int, real: Real, local: Engine, beagle: bytes
) -> None:
    with pytest.raises(kind) as ours:
        local.prepare(beagle[:nbytes], "single", Bounds(max_pixels))
    with pytest.raises(kind) as theirs:
        real.prepared(beagle[:nbytes], bounds=Bounds(max_pixels))
    assert type(theirs.value) is kind
    assert str(theirs.value) == str(ours.value)


# Failing loads.


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrong", [{"model_store": Path("/nowhere")}, {"device": "cuda:7"}, {"model": "absent"}]
)
def test_load_errors_equal_the_engine_s_and_leave_no_process(
    wrong: dict[str, object], small: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    before = children()
    settings = small.model_copy(update=wrong)
    with pytest.raises(ModelError) as theirs:
        client.load(settings, Future())
    assert children() <= before
    assert caplog.records == []
    with pytest.raises(ModelError) as ours:
        engine.load(settings)
    assert type(theirs.value) is type(ours.value)
    assert str(theirs.value) == str(ours.value)


def test_worker_log_records_keep_their_logger_and_process(
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = children()
    with pytest.raises(RuntimeError, match=r"^TypeError: "):
        client.load(Settings.model_construct(model_store=5), Future())
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("service.worker.main", "ERROR")
    assert "Traceback (most recent call last):" in record.getMessage()
    assert record.process not in {None, os.getpid()}
    assert children() <= before


@pytest.mark.filterwarnings("ignore:Exception in thread worker-events")
@pytest.mark.parametrize("error", [ValueError("not a record to log"), OSError("disk full")])
def test_failing_log_handler_fails_the_load(error: Exception) -> None:
    def fail(_: logging.LogRecord) -> bool:
        raise error

    before, threads = children(), {*threading.enumerate()}
    log = logging.getLogger("service.worker.main")
    log.addFilter(fail)
    try:
        with pytest.raises(InferenceFailed, match=EXITED):
            client.load(Settings.model_construct(model_store=5), Future())
    finally:
        log.removeFilter(fail)
    for thread in {*threading.enumerate()} - threads:
        thread.join(TIMEOUT)  # the thread that listens
    assert children() <= before


@pytest.fixture
def _exits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make started processes exit at once."""
    monkeypatch.setenv("PYTHONMALLOC", "none")


@pytest.mark.usefixtures("_exits_at_once")
def test_worker_that_exits_while_loading_fails_the_load(small: Settings) -> None:
    before = children()
    with pytest.raises(InferenceFailed, match=f"^{EXITED}$"):
        client.load(small, Future())
    assert children() <= before


def test_exit_during_loading_is_logged_before_the_load_fails(
    small: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    process = ChildProcess(small)
    closed = threading.Event()

    def close(_: object) -> None:
        process.close()
        closed.set()

    process.loaded.add_done_callback(close)
    os.kill(process.pid, signal.SIGKILL)
    assert closed.wait(TIMEOUT)
    assert caplog.messages == [f"{EXITED}, with status -9"]


@pytest.mark.usefixtures("_exits_at_once")
def test_worker_that_exits_before_the_settings_are_sent(
    small: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ended(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.wait(TIMEOUT)

    monkeypatch.setattr(subprocess, "Popen", Ended)
    with pytest.raises(InferenceFailed, match=f"^{EXITED}$"):
        client.load(small, Future())


def test_exited_worker_refuses_connections(small: Settings) -> None:
    process = ChildProcess(small)
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(InferenceFailed):
        process.loaded.result(TIMEOUT)
    with pytest.raises(InferenceFailed, match=f"^{EXITED}$"):
        process.connect()
    process.close()


def test_worker_that_does_not_exit_is_killed(
    small: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(child_process, "CLOSE_SECONDS", 0.1)
    process = ChildProcess(small)
    os.kill(process.pid, signal.SIGSTOP)  # so that it does not even see that it should end
    process.close()
    assert not process.alive
    with pytest.raises(InferenceFailed, match=EXITED):
        process.loaded.result(TIMEOUT)
    assert caplog.records == []  # it was meant to


# Exits.


def test_killed_worker_fails_what_it_decodes_and_others_may_be_sent_again(
    small: Settings, beagle: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        closing_worker(small.model_copy(update={"max_batch": 1, "decode_threads": 1})) as ours,
        TestClient(create_app(small, load=lambda *_: ours)) as client,
        ThreadPoolExecutor() as threads,
    ):
        wait_ready(client)
        logged = Logged()
        logging.getLogger("service.worker.child_process").addHandler(logged)
        os.kill(ours.pid, signal.SIGSTOP)
        url = "/classify?views=single"
        waiting = []
        for files in (parts(beagle), parts(beagle, beagle)):
            waiting.append(threads.submit(client.post, url, files=files))
            in_flight = f"googlenet_requests_in_flight {len(waiting) + 1}.0\n"
            while in_flight not in client.get("/metrics").text:
                time.sleep(0.01)  # only a scrape can tell
        os.kill(ours.pid, signal.SIGKILL)
        one, two = (answer.result() for answer in waiting)
        assert assert_problem(one, 500, "inference_failed")["detail"] == EXITED
        assert two.status_code == 200
        assert [each["error"]["code"] for each in two.json()["results"]] == ["not_ready"] * 2
        logged.wait()
        assert not ours.alive
        documented = client.get("/openapi.json").json()["paths"]["/classify"]["post"]["responses"]
        assert "500" in documented
    logging.getLogger("service.worker.child_process").removeHandler(logged)
    messages = [
        record.getMessage()
        for record in caplog.records
        if record.name == "service.worker.child_process"
    ]
    assert messages == [f"{EXITED}, with status -9"]


class Logged(logging.Handler):
    """Waits until something is logged."""

    def __init__(self) -> None:
        super().__init__()
        self._event = threading.Event()

    def emit(self, _: logging.LogRecord) -> None:
        """Set the event."""
        self._event.set()

    def wait(self) -> None:
        """Wait for a record."""
        assert self._event.wait(TIMEOUT)


@pytest.mark.slow
def test_close_during_computation_is_immediate_and_fails_waiting_calls(
    small: Settings, beagle: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(ours: WorkerClient) -> float:
        (handle,) = await ours.prepare(beagle, "single", BOUNDS)
        once = asyncio.Event()

        async def go_on() -> None:
            while True:
                await ours.executors[0].run(batch_of([handle], 1, rows=1))
                once.set()

        computing = asyncio.create_task(go_on())
        decoding = [asyncio.create_task(ours.prepare(beagle, "paper", BOUNDS)) for _ in range(9)]
        await once.wait()
        started = time.monotonic()
        ours.close()
        seconds = time.monotonic() - started
        for task in (computing, decoding[-1]):
            with pytest.raises(InferenceFailed, match=EXITED):
                await task
        await asyncio.wait(decoding)
        return seconds

    with closing_worker(small.model_copy(update={"max_batch": 1})) as ours:
        assert asyncio.run(scene(ours)) < CLOSE_SECONDS / 2  # it was not killed
    assert caplog.records == []


@pytest.mark.slow
def test_worker_ignores_signals(small: Settings, beagle: bytes) -> None:
    with closing_worker(small.model_copy(update={"max_batch": 1})) as ours:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(ours.pid, number)
            for _ in range(2):
                asyncio.run(ours.prepare(beagle, "single", BOUNDS))
            assert ours.alive


def test_failed_start_leaves_no_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    before = opened()
    with pytest.raises(FileNotFoundError):
        ChildProcess(Settings(model="digits"))
    assert opened() <= before


@pytest.mark.slow
def test_close_leaves_no_open_files(small: Settings) -> None:
    threads, before = [*threading.enumerate()], opened()
    with closing_worker(small.model_copy(update={"max_batch": 1})) as ours:
        assert len(opened() - before) > 2
    for thread in {*threading.enumerate()} - {*threads}:
        thread.join(TIMEOUT)  # the thread that listens
    assert opened() <= before
    assert ours.executors  # it is still there


def opened() -> set[str]:
    """List the open files of this process (on Linux)."""
    gc.collect()
    found = set()
    for file in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the folder itself
            found.add(str(file.readlink()))
    return found


# Imports.


def test_serving_process_does_not_import_torch() -> None:
    code = "import sys, service.server.serve; print(*{'torch', 'torchvision'} & {*sys.modules})"
    done = subprocess.run(  # noqa: S603 - ourselves
        [sys.executable, "-c", code],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout == "\n"

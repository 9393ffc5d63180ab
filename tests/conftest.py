"""What tests share: the real weights and photos, and a fake model for the one seam."""

import asyncio
import inspect
import os
import platform
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from typing import Any, NoReturn

import httpx2
import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image
from starlette.testclient import TestClient

from service.engine import converter, engine, weights
from service.engine.batch_assembly import results
from service.engine.engine import Engine
from service.engine.prepared_image import PreparedImage, given, prepare, unscaled
from service.imaging.activation_map import Activation, Grid
from service.imaging.crops import CROP, DENSE, Box, Resize
from service.imaging.heatmap import paint
from service.imaging.image_decoder import Bounds, ImageInput, decode, is_view
from service.models.ensemble import ByView, Ensemble, Member, Probabilities, Result
from service.models.manifest import Label, Preprocessing
from service.models.store import Store
from service.scheduling.admission import Decoders
from service.scheduling.cost_model import Buckets, CostModel, Key
from service.scheduling.types import Batch, Executor, P, R
from service.server.app import create_app
from service.serving.served_model import ServedModel
from service.serving.types import Limits
from service.settings import Settings

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("TESTS_SHARED", ROOT.parent / "shared"))
needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="this machine has no GPU that torch can use"
)
BUCKETS = (1, 2, 4, 8, 16)
LOOP_SECONDS = 120.0  # after which a test in an event loop is taken to hang
AS_IT_IS = Preprocessing(channels="RGB", mean=(0, 0, 0), resize="warp", side=256)


def pytest_configure() -> None:
    """Compute on one core, here and in processes, unless a test says otherwise.

    Two threads that wait for each other after each layer take many times as long where others
    compute beside them.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def in_event_loop(test: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end in an event loop that has nothing to complain of."""
    complaints = []

    async def watched() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        await asyncio.wait_for(test, LOOP_SECONDS)

    asyncio.run(watched())
    assert complaints == []


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine function in an event loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    in_event_loop(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


def missing(what: str) -> NoReturn:
    """Skip loudly, or fail where nothing may be missing."""
    if os.environ.get("TESTS_STRICT"):
        pytest.fail(f"{what} is missing, and TESTS_STRICT is set")
    pytest.skip(f"{what} is missing")


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what is measured in a folder of these tests, for processes that they start, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings in the environment."""
    for name in (*Settings.model_fields, "key"):
        monkeypatch.delenv(f"GOOGLENET_{name.upper()}", raising=False)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real weights, reference activations and photos."""
    if not SHARED.is_dir():
        missing(f"the folder of real weights and photos {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def beagle(shared: Path) -> bytes:
    """A photo of a beagle, class 162."""
    return (shared / "photos/flickr/beagle.jpg").read_bytes()


@pytest.fixture(scope="session")
def photos(shared: Path) -> list[Image.Image]:
    """16 photos of different classes and shapes."""
    paths = sorted((shared / "photos").glob("*.JPEG"))[::6][:16]
    return [decode(path.read_bytes(), max_pixels=10**8) for path in paths]


IF_X86 = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="of other CPUs oneDNN hides nothing"
)


def on_an_old_cpu(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the service where oneDNN has no instructions for half precision."""
    return subprocess.run(  # noqa: S603 - ourselves
        [sys.executable, "-m", "service", *command],
        cwd=ROOT, capture_output=True, text=True, timeout=200, check=False,
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
    )  # fmt: skip


@pytest.fixture(scope="session")
def real_store(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with the real BVLC weights, imported from Caffe's own file and converted."""
    store = Store(tmp_path_factory.mktemp("store"), ROOT / "model_store")
    file = shared / "weights/bvlc_googlenet.caffemodel"
    weights.install(store, "bvlc_googlenet", file, source=file.name)
    converter.convert(store, "bvlc_googlenet")
    return store


@pytest.fixture(scope="module")
def real_engine(real_store: Store) -> Engine:
    """The engine with the real weights, in float32 on one thread."""
    settings = Settings(
        model="bvlc_googlenet",
        model_store=real_store.root,
        device="cpu",
        precision="float32",
        cpu_threads=1,
        max_batch=10,
    )
    return engine.load(settings)


@pytest.fixture(scope="session")
def real_client(real_store: Store) -> Iterator[TestClient]:
    """A client of the real service on the real weights, in float32, ready."""
    settings = Settings(
        model="bvlc_googlenet",
        model_store=real_store.root,
        device="cpu",
        precision="float32",
        max_batch=8,  # fewer sizes to time
        cpu_threads=1,  # two that share a batch are slow where others compute
    )
    with TestClient(create_app(settings)) as client:
        wait_ready(client)
        yield client


def answered(code: int) -> str:
    """Name what counts the answers of `POST /classify` with a status, as `/metrics` writes it."""
    labels = f'code="{code}",method="POST",priority="interactive",route="/classify"'
    return f"googlenet_requests_total{{{labels}}}"


@dataclass(frozen=True)
class Served:
    """A real process that serves the real weights."""

    port: int
    process: subprocess.Popen[str]
    log: list[str] = field(default_factory=list)  # what it said since it began to serve


@contextmanager
def serving(*arguments: str) -> Iterator[Served]:
    """Serve in a process of its own, on a free port; the first line with the port ends the wait."""
    alone = ("--port", "0", "--api-processes", "1")
    command = [sys.executable, "-m", "service", "serve", *alone, *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)  # noqa: S603 - ourselves
    assert process.stderr is not None
    reader = None
    try:
        for line in process.stderr:
            if found := re.search(r"running on http://[\d.]+:(\d+)", line):
                ours = Served(int(found[1]), process)
                # Somebody has to go on reading, or the process would block on a full pipe.
                reader = threading.Thread(target=ours.log.extend, args=[process.stderr])
                reader.start()
                yield ours
                break
        else:
            pytest.fail("the process ended without serving")
    finally:
        process.terminate()
        process.wait(timeout=30)
        if reader:
            reader.join()
        process.stderr.close()


@pytest.fixture(scope="session")
def served(real_store: Store) -> Iterator[Served]:
    """A ready process on the real weights, in float32."""
    store = str(real_store.root)
    small = ("--max-batch", "4", "--cpu-threads", "1", "--precision", "float32")
    with serving("--model", "bvlc_googlenet", "--model-store", store, *small) as ours:
        with httpx2.Client(base_url=f"http://127.0.0.1:{ours.port}") as client:
            wait_ready(client)
        yield ours


@contextmanager
def in_thread(server: uvicorn.Server, listener: socket.socket) -> Iterator[int]:
    """Have a server answer what comes to a listener, in a thread; gives the port."""
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@contextmanager
def website(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """A web server on this machine that answers everything so; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(ConnectionError):  # the caller may hang up
                answer(self)

        def do_POST(self) -> None:
            self.do_GET()

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def wait_ready(client: httpx2.Client) -> None:
    """Wait for the model, as a start-up probe does."""
    for _ in range(600):
        if client.get("/readyz").status_code == 200:
            return
        time.sleep(0.1)
    pytest.fail("the service did not become ready in a minute")


Run = Callable[[Batch[PreparedImage]], Sequence[Result]]


def mean_colour(batch: Batch[PreparedImage]) -> list[Probabilities | ByView]:
    """A fake model with three classes: how red, green and blue views are.

    Its features are the mean colours.
    """
    colours = []
    for part in batch.slices:
        for view in part.payload.plan.views[part.start : part.stop]:
            canvas = part.payload.canvases[view.canvas]
            square = canvas[view.top : view.top + view.side, view.left : view.left + view.side]
            colours.append(square.mean(axis=(0, 1)))
    outputs = [colour / max(colour.sum(), 1e-9) for colour in colours], colours
    return results([np.float32(output) for output in outputs], batch.slices)


def colour_or_map(batch: Batch[PreparedImage]) -> Sequence[Result]:
    """Do as the one above, and give maps in which every place speaks for red, against others."""
    if not batch.key.maps:
        return mean_colour(batch)
    (part,) = batch.slices
    grid = np.full((2, 2), -1 if part.payload.target else 1, np.float32)
    return [Activation(grid, 2.0, 1.0, Box(0, 0, 1, 1))]


def threaded(
    run: Callable[[Batch[P]], Sequence[R]],
) -> Callable[[Batch[P]], Awaitable[Sequence[R]]]:
    """Make a lane's coroutine function of a blocking one, which gets a thread of its own."""
    thread = ThreadPoolExecutor(1)

    async def call(batch: Batch[P]) -> Sequence[R]:
        return await asyncio.get_running_loop().run_in_executor(thread, run, batch)

    return call


@dataclass
class FakeBackend:
    """A backend in this process: decodes for real, computes as it is told."""

    ensemble: Ensemble
    executors: Sequence[Executor[PreparedImage, Result]]
    pid: int = field(default_factory=os.getpid)
    stalled: float = 0.0
    closed: threading.Event = field(default_factory=threading.Event)
    end: Future[None] = field(default_factory=Future)
    decoder: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    decoders: Decoders = field(default_factory=lambda: Decoders(1))
    undecoded: int = 0

    async def ended(self) -> None:
        """Wait for what a test says of it, by `die`."""
        await asyncio.wrap_future(self.end)

    def die(self) -> None:
        """Be a worker that has ended by itself."""
        self.end.set_result(None)

    async def prepare(
        self,
        image: ImageInput,
        views: str,
        bounds: Bounds,
        target: int = 0,
        *,
        features: bool = False,
    ) -> Sequence[PreparedImage]:
        """Decode in a thread, one image after the other."""
        what = (image, self.ensemble.plans(views), bounds, target)
        loop = asyncio.get_running_loop()
        self.undecoded += 1
        try:
            prepared = await loop.run_in_executor(self.decoder, self._timed, *what)
            return [replace(one, features=True) for one in prepared] if features else prepared
        finally:
            self.undecoded -= 1

    async def paint(self, image: bytes, heat: Grid, bounds: Bounds) -> bytes:
        """Draw in that thread, too."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.decoder, paint, image, heat, bounds)

    def _timed(self, *what: Any) -> Sequence[PreparedImage]:
        started = time.monotonic()
        image, plans, *_ = what
        try:
            if is_view(image):
                return given(unscaled(image, AS_IT_IS), plans)
            return prepare(*what)
        finally:
            self.decoders = self.decoders.observed(time.monotonic() - started)

    def decode_wait(self, images: int) -> float:
        """Predict as the real one does."""
        return self.decoders.decode_wait(self.undecoded + images)

    def close(self) -> None:
        """Note it."""
        self.closed.set()


def served_model(
    load: Callable[[Any], Any], *, max_pixels: int = 10**6, max_queue_bytes: int = 10**9
) -> ServedModel:
    """A model that is served without metrics."""
    bounds = Bounds(max_pixels)
    limits = Limits(image=bounds, max_queue_bytes=max_queue_bytes, stall_seconds=60)
    return ServedModel(load, limits, lambda _: None)


def fake_backend(  # noqa: PLR0913 - all that may be other
    run: Run = mean_colour,
    *,
    seconds_per_row: float = 0.001,
    sizes: Sequence[int] = BUCKETS,
    members: int = 1,
    executors: int = 1,
    explains: bool = False,
) -> FakeBackend:
    """A model that answers by `run`, in batches of these sizes at `seconds_per_row`."""
    places = [*product(range(members), (CROP, DENSE))]
    buckets = {Key(*place): sizes for place in places}
    if explains:
        buckets |= {Key(*place, maps=True): (1,) for place in places}
    ensemble = Ensemble(
        members=tuple(
            Member(f"fake{n}", "1", "fake", "0" * 64, Resize("warp", 256), channels=3 * explains)
            for n in range(members)
        ),
        labels=tuple(Label(name=name, wnid=None) for name in ("red", "green", "blue")),
        costs=CostModel(
            {
                key: Buckets({size: seconds_per_row * size for size in sizes})
                for key, sizes in buckets.items()
            }
        ),
        device="cpu",
        precision="float32",
        warmup_seconds=0.0,
    )
    return FakeBackend(ensemble, [Executor(threaded(run), number) for number in range(executors)])

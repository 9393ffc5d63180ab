"""docs/design.md lists the files that one JPEG enters on `POST /classify`, in order."""

import re
import socket
import threading
from concurrent.futures import Future
from types import FrameType, SimpleNamespace
from typing import Any, cast

import pytest
from conftest import ROOT
from PIL import Image
from test_classify import encoded, parts, service

from service.engine import engine
from service.serving.metrics import loop_lag
from service.settings import Settings
from service.worker.client import WorkerClient
from service.worker.main import Handler
from service.worker.messages import Loaded

SETTINGS = Settings(model="digits", views="single", device="cpu", cpu_threads=1, max_batch=2)
SERVICE, WORKER = f"{ROOT}/service/", "worker thread"


class Trace:
    """The files of `service/` in which functions are called, in order of the first call."""

    def __init__(self) -> None:
        self.on, self.server, self.worker = False, list[str](), list[str]()

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        """Record a call: a profile function."""
        code = frame.f_code
        if not (self.on and event == "call" and code.co_filename.startswith(SERVICE)):
            return
        # No imports and no resumed background tasks: the argument of RESUME is 0 at a start.
        if code.co_name == "<module>" or code.co_code[frame.f_lasti + 1] & 3:
            return
        files = self.worker if threading.current_thread().name == WORKER else self.server
        if (file := code.co_filename.removeprefix(SERVICE)) not in files:
            files.append(file)


def worker_threads(loaded: engine.Engine) -> Any:
    """Make a fake `ChildProcess`: threads of this process handle its connections."""
    handler = Handler(loaded)

    def connect() -> socket.socket:
        ours, theirs = socket.socketpair()
        threading.Thread(target=handler.serve, args=[theirs], name=WORKER).start()
        ours.settimeout(0)
        return ours

    return SimpleNamespace(pid=0, alive=True, ended=Future(), connect=connect, close=lambda: None)


def listed(process: str) -> list[str]:
    page = (ROOT / "docs/design.md").read_text("utf-8")
    table = page.partition(f"In {process}:\n\n")[2].partition("\n\n")[0]
    return re.findall(r"^\| `(\S+\.py)` \|", table, re.MULTILINE)


def test_the_files_of_a_request_are_those_listed_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_lag, "EVERY", 60)  # seconds: no report during the request
    loaded, trace = engine.load(SETTINGS), Trace()
    ready = Loaded(loaded.ensemble, (0,))
    image = parts(encoded(Image.new("L", (32, 32)), "JPEG"))
    threading.setprofile(trace)
    try:
        process = worker_threads(loaded)
        with service(lambda *_: WorkerClient(process, ready, 1), SETTINGS) as client:
            trace.on = True
            response = client.post("/classify", files=image)
            trace.on = False
    finally:
        threading.setprofile(cast("Any", None))
    assert response.status_code == 200, response.text
    assert listed("the listening process") == trace.server
    assert listed("the worker") == trace.worker

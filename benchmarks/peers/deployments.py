"""The command and the request format of each server."""

import json
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.peers import environments
from service.bench.client import Target

MakeRequest = Callable[[Target, bytes], bytes]  # of an image

OURS = "ours"
RAW, FORM = "raw", "form"  # the image as the body itself, or as `curl -F file=@...` sends it


@dataclass(frozen=True, slots=True)
class Deployment:
    """A server: its command, with the placeholder `{port}`, and its request formats."""

    command: tuple[str, ...]
    requests: Mapping[str, MakeRequest]
    ready: str = ""  # path of a readiness probe; empty: classify an image
    environment: Mapping[str, str] = field(default_factory=dict)


def interpreter(name: str) -> Path:
    """Return the Python that runs a server."""
    return Path(sys.executable) if name == OURS else environments.interpreter(name)


def _raw(path: str) -> MakeRequest:
    return lambda target, image: target.post(path, image, {"Content-Type": "image/jpeg"})


def _form(path: str) -> MakeRequest:
    return lambda target, image: target.post_form(path, image, {})


def _infer(target: Target, image: bytes) -> bytes:
    """Prepare Triton's inference request, the image as a binary tensor of one string."""
    data = struct.pack("<I", len(image)) + image
    tensor = {
        "name": "image",
        "datatype": "BYTES",
        "shape": [1, 1],
        "parameters": {"binary_data_size": len(data)},
    }
    answer = {"name": "answer", "parameters": {"binary_data": False}}
    head = json.dumps({"inputs": [tensor], "outputs": [answer]}).encode()
    kind = {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(head)),
    }
    return target.post("/v2/models/googlenet/infer", head + data, kind)


def _module(name: str, *options: str) -> tuple[str, ...]:
    return ("-m", f"benchmarks.peers.servers.{name}", *options)


_LOOPBACK = ("--host", "127.0.0.1", "--port", "{port}")
_PORT = {"PORT": "{port}"}

SERVERS: Mapping[str, Deployment] = {
    OURS: Deployment(
        (
            *("-m", "service", "serve", "--model", "bvlc_googlenet", "--views", "single"),
            *("--precision", "bfloat16", *_LOOPBACK),  # as the peers with our engine
        ),
        {RAW: _raw("/classify"), FORM: _form("/classify")},
        "/readyz",
    ),
    "mosec": Deployment(
        _module("mosec", "--address", "127.0.0.1", "--port", "{port}", "--timeout", "30000"),
        {RAW: _raw("/inference")},
    ),
    "litserve": Deployment(_module("litserve"), {RAW: _raw("/predict")}, environment=_PORT),
    "triton": Deployment(
        _module("triton"),
        {RAW: _infer},
        environment={**_PORT, "PYTRITON_HOME": str(environments.PLACE / "triton" / "home")},
    ),
    "ray": Deployment(
        _module("ray"),
        {RAW: _raw("/classify")},
        environment={
            **_PORT,
            "RAY_USAGE_STATS_ENABLED": "0",
            # Ray's own sockets on the loopback only, as on Windows and macOS.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        },
    ),
    "bentoml": Deployment(
        ("-m", "bentoml", "serve", "benchmarks.peers.servers.bentoml:Classifier", *_LOOPBACK),
        {FORM: _form("/classify")},
        environment={
            "BENTOML_DO_NOT_TRACK": "True",
            "BENTOML_HOME": str(environments.PLACE / "bentoml" / "home"),
        },
    ),
    "fastapi": Deployment(
        ("-m", "uvicorn", "benchmarks.peers.servers.fastapi:app", *_LOOPBACK),
        {FORM: _form("/classify")},
    ),
}

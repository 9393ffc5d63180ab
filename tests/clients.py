"""Call a server with Triton's or KServe's client of the Open Inference Protocol.

Runs in its own virtual environment (`make clients`), as those clients need older libraries than
the service: reads calls as JSON, writes results as JSON. Each client needs its own process, as
their protobuf descriptions of the same protocol conflict.
"""

import asyncio
import base64
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np

Call = dict[str, Any]
OUTPUT, FEATURES = "probabilities", "features"


def values(call: Call) -> np.ndarray[Any, Any]:
    """Return the tensor to send: images as objects, else numbers."""
    raw = [base64.b64decode(one) for one in call["data"]]
    if call["datatype"] == "BYTES":
        return np.array(raw, dtype=object)
    dtype = {"UINT8": np.uint8, "FP32": np.float32}[call["datatype"]]
    return np.frombuffer(b"".join(raw), dtype).reshape(call["shape"])


def jsonable(array: np.ndarray[Any, Any]) -> Any:
    """Convert an output for JSON."""
    if array.dtype == object or array.dtype.kind in "SU":
        texts = [one.decode() if isinstance(one, bytes) else str(one) for one in array.ravel()]
        return np.array(texts).reshape(array.shape).tolist()
    return array.tolist()


def named(arrays: Sequence[np.ndarray[Any, Any]]) -> dict[str, Any]:
    """Name the outputs of a response: probabilities or labels, then features if there are any."""
    return dict(zip(("output", FEATURES), map(jsonable, arrays), strict=False))


def triton(kind: str, url: str) -> Callable[[Call], Any]:
    """Make calls with Triton's client."""
    if kind == "http":
        import tritonclient.http as client  # noqa: PLC0415 - only one may be imported
    else:
        import tritonclient.grpc as client  # noqa: PLC0415
    server = client.InferenceServerClient(url)

    def about(call: Call) -> Any:
        name, headers = call["model"], call.get("headers")
        described = server.get_model_metadata(name, headers=headers)
        plain = isinstance(described, dict)
        outputs = described["outputs"] if plain else described.outputs
        shapes = [one["shape"] if plain else one.shape for one in outputs]
        return {
            "live": server.is_server_live(),
            "ready": server.is_server_ready(),
            "model_ready": server.is_model_ready(name, headers=headers),
            "sizes": [int(shape[1]) for shape in shapes],
        }

    def infer(call: Call) -> Any:
        array = values(call)
        tensor = client.InferInput(call["input"], [*array.shape], call["datatype"])
        how = {"binary_data": call["binary"]} if kind == "http" else {}
        tensor.set_data_from_numpy(array, **how)
        count = call.get("classification", 0)
        outputs = [client.InferRequestedOutput(OUTPUT, class_count=count, **how)]
        if call.get("features"):
            outputs.append(client.InferRequestedOutput(FEATURES, **how))
        result = server.infer(
            call["model"], [tensor], call.get("version", ""),
            outputs=outputs if outputs[1:] or count or not call["binary"] else None,
            request_id=call.get("id", ""), headers=call.get("headers"), timeout=call.get("timeout"),
            parameters=call.get("parameters"),
        )  # fmt: skip
        response = result.get_response()
        identity = response.get("id") if isinstance(response, dict) else response.id
        arrays = [result.as_numpy(one.name()) for one in outputs]
        return {**named(arrays), "id": identity}

    return lambda call: about(call) if call.get("about") else infer(call)


async def health(client: Any, *base: str, name: str, headers: Any) -> dict[str, bool]:
    """Query liveness and readiness with KServe's client; over HTTP it takes a base URL."""
    return {
        "live": await client.is_server_live(*base, headers=headers),
        "ready": await client.is_server_ready(*base, headers=headers),
        "model_ready": await client.is_model_ready(*base, name, headers=headers),
    }


def kserve(kind: str, url: str) -> Callable[[Call], Any]:
    """Make calls with KServe's client."""
    from kserve import (  # noqa: PLC0415 - conflicts with Triton's
        InferenceGRPCClient,
        InferenceRESTClient,
        InferInput,
        InferRequest,
        RESTConfig,
    )
    from kserve.protocol.infer_type import RequestedOutput  # noqa: PLC0415

    def request(call: Call) -> Any:
        array = values(call)
        tensor = InferInput(call["input"], [*array.shape], call["datatype"])
        tensor.set_data_from_numpy(array, binary_data=call["binary"])
        count = call.get("classification", 0)
        parameters = {"binary_data": call["binary"], **({"classification": count} if count else {})}
        wanted = {"binary_data": call["binary"]}
        features = [RequestedOutput(FEATURES, wanted)] if call.get("features") else []
        return InferRequest(
            call["model"], [tensor], request_id=call.get("id"),
            parameters=call.get("parameters") or {},
            request_outputs=[RequestedOutput(OUTPUT, parameters), *features],
        )  # fmt: skip

    async def rest(call: Call) -> Any:
        base, name, headers = f"http://{url}", call["model"], call.get("headers")
        async with InferenceRESTClient(RESTConfig(protocol="v2", retries=0)) as client:
            if call.get("about"):
                return await health(client, base, name=name, headers=headers)
            result = await client.infer(base, request(call), name, headers=headers)
        return {**named([one.as_numpy() for one in result.outputs]), "id": result.id}

    async def grpc(call: Call) -> Any:
        metadata = [*call.get("headers", {}).items()]
        async with InferenceGRPCClient(url, retries=0) as client:
            if call.get("about"):
                return await health(client, name=call["model"], headers=metadata)
            result = await client.infer(request(call), headers=metadata)
        return {**named([one.as_numpy() for one in result.outputs]), "id": result.id}

    async def v1(call: Call) -> Any:
        base, name = f"http://{url}", call["model"]
        async with InferenceRESTClient(RESTConfig(protocol="v1", retries=0)) as client:
            ready = await client.is_model_ready(base, name)
            return {"ready": ready} | await client.infer(base, call["body"], name)

    calls: dict[str, Callable[[Call], Awaitable[Any]]] = {"http": rest, "grpc": grpc, "v1": v1}
    return lambda call: asyncio.run(calls[kind](call))  # type: ignore[arg-type]


def attempt(ask: Callable[[Call], Any], call: Call) -> Any:
    """Return a call's result, or its error message."""
    try:
        return ask(call)
    except Exception as error:  # noqa: BLE001 - each client has its own
        code = getattr(error, "status", None) or getattr(error, "code", lambda: "")
        return {"error": str(error), "status": str(code() if callable(code) else code)}


if __name__ == "__main__":
    maker, kind = {"triton": triton, "kserve": kserve}[sys.argv[1]], sys.argv[2]
    ask = maker(kind, sys.argv[3])
    json.dump([attempt(ask, call) for call in json.load(sys.stdin)], sys.stdout)

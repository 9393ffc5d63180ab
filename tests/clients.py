"""What other people's clients of the Open Inference Protocol make of a server.

A program for a virtual environment of its own (`make clients`), since those clients want
older libraries than the service has: calls as JSON in, what came of them as JSON out. Each client
gets a process of its own, too: two descriptions of the same protocol cannot share one.
"""

import asyncio
import base64
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

Call = dict[str, Any]
OUTPUT = "probabilities"


def values(call: Call) -> np.ndarray[Any, Any]:
    """Give the tensor to be sent: images as objects, else numbers."""
    raw = [base64.b64decode(one) for one in call["data"]]
    if call["datatype"] == "BYTES":
        return np.array(raw, dtype=object)
    dtype = {"UINT8": np.uint8, "FP32": np.float32}[call["datatype"]]
    return np.frombuffer(b"".join(raw), dtype).reshape(call["shape"])


def told(array: np.ndarray[Any, Any]) -> Any:
    """Make an output fit for JSON."""
    if array.dtype == object or array.dtype.kind in "SU":
        texts = [one.decode() if isinstance(one, bytes) else str(one) for one in array.ravel()]
        return np.array(texts).reshape(array.shape).tolist()
    return array.tolist()


def triton(kind: str, url: str) -> Callable[[Call], Any]:
    """Make calls with Triton's client."""
    if kind == "http":
        import tritonclient.http as client  # noqa: PLC0415 - either, never both
    else:
        import tritonclient.grpc as client  # noqa: PLC0415
    server = client.InferenceServerClient(url)

    def about(call: Call) -> Any:
        name, headers = call["model"], call.get("headers")
        described = server.get_model_metadata(name, headers=headers)
        plain = isinstance(described, dict)
        outputs = described["outputs"] if plain else described.outputs
        shape = outputs[0]["shape"] if plain else outputs[0].shape
        return {
            "live": server.is_server_live(),
            "ready": server.is_server_ready(),
            "model_ready": server.is_model_ready(name, headers=headers),
            "classes": int(shape[1]),
        }

    def infer(call: Call) -> Any:
        array = values(call)
        tensor = client.InferInput(call["input"], [*array.shape], call["datatype"])
        how = {"binary_data": call["binary"]} if kind == "http" else {}
        tensor.set_data_from_numpy(array, **how)
        count = call.get("classification", 0)
        wanted = client.InferRequestedOutput(OUTPUT, class_count=count, **how)
        result = server.infer(
            call["model"], [tensor], call.get("version", ""),
            outputs=[wanted] if "classification" in call or not call["binary"] else None,
            request_id=call.get("id", ""), headers=call.get("headers"), timeout=call.get("timeout"),
            parameters=call.get("parameters"),
        )  # fmt: skip
        response = result.get_response()
        identity = response.get("id") if isinstance(response, dict) else response.id
        return {"output": told(result.as_numpy(OUTPUT)), "id": identity}

    return lambda call: about(call) if call.get("about") else infer(call)


def kserve(kind: str, url: str) -> Callable[[Call], Any]:
    """Make calls with KServe's client."""
    from kserve import (  # noqa: PLC0415 - its descriptions and Triton's cannot share a process
        InferenceGRPCClient,
        InferenceRESTClient,
        InferInput,
        InferRequest,
        RESTConfig,
    )
    from kserve.protocol.infer_type import RequestedOutput  # noqa: PLC0415

    def asked(call: Call) -> Any:
        array = values(call)
        tensor = InferInput(call["input"], [*array.shape], call["datatype"])
        tensor.set_data_from_numpy(array, binary_data=call["binary"])
        count = call.get("classification", 0)
        parameters = {"binary_data": call["binary"], **({"classification": count} if count else {})}
        return InferRequest(
            call["model"], [tensor], request_id=call.get("id"),
            parameters=call.get("parameters") or {},
            request_outputs=[RequestedOutput(OUTPUT, parameters)],
        )  # fmt: skip

    async def rest(call: Call) -> Any:
        base, name, headers = f"http://{url}", call["model"], call.get("headers")
        async with InferenceRESTClient(RESTConfig(protocol="v2", retries=0)) as client:
            if call.get("about"):
                return {
                    "live": await client.is_server_live(base),
                    "ready": await client.is_server_ready(base),
                    "model_ready": await client.is_model_ready(base, name, headers=headers),
                }
            result = await client.infer(base, asked(call), name, headers=headers)
        return {"output": told(result.outputs[0].as_numpy()), "id": result.id}

    async def grpc(call: Call) -> Any:
        metadata = [*call.get("headers", {}).items()]
        async with InferenceGRPCClient(url, retries=0) as client:
            if call.get("about"):
                return {
                    "live": await client.is_server_live(headers=metadata),
                    "ready": await client.is_server_ready(headers=metadata),
                    "model_ready": await client.is_model_ready(call["model"], headers=metadata),
                }
            result = await client.infer(asked(call), headers=metadata)
        return {"output": told(result.outputs[0].as_numpy()), "id": result.id}

    made: dict[str, Callable[[Call], Awaitable[Any]]] = {"http": rest, "grpc": grpc}
    return lambda call: asyncio.run(made[kind](call))  # type: ignore[arg-type]


def tried(ask: Callable[[Call], Any], call: Call) -> Any:
    """Give what came of a call, or the sentence of its error."""
    try:
        return ask(call)
    except Exception as error:  # noqa: BLE001 - each client has its own
        code = getattr(error, "status", None) or getattr(error, "code", lambda: "")
        return {"error": str(error), "status": str(code() if callable(code) else code)}


if __name__ == "__main__":
    maker, kind = {"triton": triton, "kserve": kserve}[sys.argv[1]], sys.argv[2]
    ask = maker(kind, sys.argv[3])
    json.dump([tried(ask, call) for call in json.load(sys.stdin)], sys.stdout)

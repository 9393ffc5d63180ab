"""LitServe: an API process, queues, and a worker process that decodes and computes."""

import os
from typing import Annotated, Any

import litserve
from fastapi import Body

from benchmarks.peers import engine
from benchmarks.peers.engine import Answer, Pixels


class API(litserve.LitAPI):
    """Classifies images."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe's signature
        """Load the model, in the worker process."""
        self._decoder = engine.Decoder()
        self._network = engine.Network()

    def decode_request(self, request: Annotated[bytes, Body(media_type="image/jpeg")]) -> bytes:
        """Return the body."""
        return request

    def batch(self, inputs: list[bytes]) -> list[Pixels]:
        """Decode a batch."""
        return self._decoder.decode_all(inputs)

    def predict(self, x: list[Pixels]) -> list[Answer]:
        """Rank a batch."""
        return self._network.rank(x)

    def unbatch(self, output: list[Answer]) -> list[Answer]:
        """Return the answers."""
        return output

    def encode_response(self, output: Answer) -> Any:
        """Return the answer."""
        return output


if __name__ == "__main__":
    wait = engine.choice("WAIT_MS", ours=10, eager=10) / 1000
    api = API(max_batch_size=engine.MAX_BATCH, batch_timeout=wait)
    server = litserve.LitServer(api, accelerator="cpu", devices=1, fast_queue=engine.IS_OURS)
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), generate_client_file=False)

"""mosec: decoding processes and an inference process, each stage with its batch size."""

from typing import Any

from mosec import Server, Worker

from benchmarks.peers import engine
from benchmarks.peers.engine import Answer


class Decode(Worker):
    """Bytes to an array, one image at a time."""

    def __init__(self) -> None:
        self._decoder = engine.Decoder()

    def deserialize(self, data: bytes) -> bytes:
        """Take the body as it is; the default would read JSON."""
        return data

    def forward(self, data: bytes) -> Any:
        """Decode an image."""
        return self._decoder.decode(data)


class Rank(Worker):
    """Arrays to labels, in batches."""

    def __init__(self) -> None:
        self._network = engine.Network()

    def forward(self, data: list[Any]) -> list[Answer]:
        """Rank a batch."""
        return self._network.rank(data)


if __name__ == "__main__":
    server = Server()
    server.append_worker(Decode, num=engine.choice("WORKERS", ours=engine.CORES, eager=4))
    wait = engine.choice("WAIT_MS", ours=2, eager=10)
    rankers = engine.choice("RANKERS", ours=1, eager=1)
    server.append_worker(Rank, num=rankers, max_batch_size=engine.MAX_BATCH, max_wait_time=wait)
    server.run()

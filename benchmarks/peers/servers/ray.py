"""Ray Serve: an HTTP proxy actor, and a replica actor that batches."""

import asyncio
import os

import ray
from ray import serve
from ray.serve.schema import LoggingConfig
from starlette.requests import Request

from benchmarks.peers import engine
from benchmarks.peers.engine import Answer, Pixels

WAIT = engine.choice("WAIT_MS", ours=2, eager=10) / 1000  # seconds


# As many cores as there are, since Ray gives OpenMP as many threads as an actor has cores; and
# as many requests at once as the load generator sends, since the default of 5 starves batches.
@serve.deployment(
    max_ongoing_requests=128,
    ray_actor_options={"num_cpus": engine.CORES},
    logging_config=LoggingConfig(enable_access_log=not engine.IS_OURS),
)
class Classifier:
    """Classifies images."""

    def __init__(self) -> None:
        self._decoder = engine.Decoder()
        self._network = engine.Network()

    async def __call__(self, request: Request) -> Answer:
        """Take the body, decode it in a thread for our engine, and join a batch."""
        data = await request.body()
        if not engine.IS_OURS:
            return await self._rank(self._decoder.decode(data))
        return await self._rank(await asyncio.to_thread(self._decoder.decode, data))

    @serve.batch(max_batch_size=engine.MAX_BATCH, batch_wait_timeout_s=WAIT)
    async def _rank(self, images: list[Pixels]) -> list[Answer]:
        if not engine.IS_OURS:
            return self._network.rank(images)
        return await asyncio.to_thread(self._network.rank, images)


def listen_on_loopback() -> None:
    """Bind a replica's own gRPC server, which is unused here, to the loopback only."""
    from ray.serve._private import replica  # noqa: PLC0415 - runs in each of Ray's workers

    add = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, _: add(server, "127.0.0.1:0")


if __name__ == "__main__":
    ray.init(
        address="local",
        runtime_env={"worker_process_setup_hook": listen_on_loopback},
        _node_ip_address="127.0.0.1",
        include_dashboard=False,
        num_cpus=engine.CORES,
    )
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PORT"])})
    serve.run(Classifier.bind(), route_prefix="/classify", blocking=True)

"""Triton, by NVIDIA's PyTriton: the C++ server with a Python callable."""

import json
import os

import numpy as np
import numpy.typing as npt
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from benchmarks.peers import engine

decoder = engine.Decoder()
network = engine.Network()


@batch
def classify(image: npt.NDArray[np.object_]) -> dict[str, npt.NDArray[np.object_]]:
    """Rank a batch: (N, 1) bytes to (N, 1) bytes of JSON."""
    answers = network.rank(decoder.decode_all(image[:, 0].tolist()))
    return {"answer": np.array([[json.dumps(answer).encode()] for answer in answers], dtype=object)}


if __name__ == "__main__":
    port = int(os.environ["PORT"])
    config = TritonConfig(
        http_address="127.0.0.1", http_port=port, allow_grpc=False, allow_metrics=False
    )
    instances = engine.choice("WORKERS", ours=2, eager=1)
    wait = engine.choice("WAIT_MS", ours=0, eager=0)
    with Triton(config=config) as triton:
        triton.bind(
            model_name="googlenet",
            infer_func=[classify] * instances,
            inputs=[Tensor(name="image", dtype=bytes, shape=(1,))],
            outputs=[Tensor(name="answer", dtype=bytes, shape=(1,))],
            config=ModelConfig(
                max_batch_size=engine.MAX_BATCH,
                batcher=DynamicBatcher(max_queue_delay_microseconds=1000 * wait),
            ),
        )
        triton.serve()

"""A graph compiled for a CPU, and its inference requests."""

from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt

from service.engine.batch_assembly import Rows
from service.engine.openvino_api import core

Outputs = list[npt.NDArray[np.float32]]

PART_ROWS = 4  # that a core computes at a time; more were no faster


class CompiledGraph:
    """A graph compiled for `streams` inferences at a time, which share `threads` threads."""

    def __init__(self, graph: Any, hint: str, *, threads: int, streams: int = 1) -> None:
        """Compile a graph; raises RuntimeError if the CPU does not support the precision hint."""
        config = {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": streams,
        }
        self._compiled = core().compile_model(graph, "CPU", config)
        self._idle: deque[Any] = deque()  # requests

    def infer(self, parts: Sequence[Rows]) -> Outputs:
        """Compute the parts of a batch, each in one stream; returns the outputs of all its rows.

        Can be called by several threads; their parts are computed in turn.
        """
        requests = [self._request() for _ in parts]
        with ExitStack() as pending:  # waits for all, also if one fails: they use the rows
            for request, part in zip(requests, parts, strict=True):
                request.start_async({0: part}, share_inputs=True)
                pending.callback(request.wait)
        outputs = zip(*(request.output_tensors for request in requests), strict=True)
        joined = [np.concatenate([tensor.data for tensor in output]) for output in outputs]
        self._idle.extend(requests)
        return joined

    def _request(self) -> Any:
        try:
            return self._idle.pop()
        except IndexError:
            return self._compiled.create_infer_request()


class Network:
    """A graph compiled in two ways, for all cores together and for each apart.

    Together they take the least time for a few rows, but after each layer they wait for the
    slowest of them. Apart, what interrupts one core, as decoding and HTTP do, delays no other: busy
    cores compute more rows a second (`benchmarks/README.md`).
    """

    def __init__(self, graph: Any, hint: str, threads: int) -> None:
        """Compile a graph; raises what `CompiledGraph` raises."""
        self._threads = threads
        self._together = CompiledGraph(graph, hint, threads=threads)
        self._apart = (
            CompiledGraph(graph, hint, threads=threads, streams=threads)
            if threads > 1
            else self._together
        )

    def infer(self, rows: Rows, *, alone: bool = True) -> Outputs:
        """Compute a batch; `alone` says whether no other is being computed."""
        if alone and len(rows) < 2 * self._threads:
            return self._together.infer([rows])
        return self._apart.infer(np.array_split(rows, parts(len(rows), self._threads)))


def parts(rows: int, cores: int) -> int:
    """Return into how many parts a batch is split: the same number for each core, if possible."""
    for_each = -(-rows // (cores * PART_ROWS))
    return min(rows, cores * for_each)

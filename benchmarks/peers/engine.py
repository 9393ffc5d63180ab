"""The network and preprocessing that all peers share, so that only the serving differs.

`ENGINE=ours` is this project's engine; `ENGINE=eager` is what a quick start would deploy: the
same network in float32 by PyTorch, not compiled.
"""

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from service.imaging import crops, image_decoder
from service.models import store
from service.models.manifest import Label

IS_OURS = os.environ.get("ENGINE", "ours") == "ours"
MAX_BATCH = 16
CORES = os.cpu_count() or 1

_MODEL = "bvlc_googlenet"
_MAX_PIXELS = 50_000_000
_TOP = 5

Pixels = npt.NDArray[Any]  # (224, 224, 3) uint8 RGB for our engine, else (3, 224, 224) float32 BGR
Answer = dict[str, Any]  # a JSON object


def choice(name: str, *, ours: int, eager: int) -> int:
    """Return a server's parameter by engine; an environment variable overrides it."""
    return int(os.environ.get(name, ours if IS_OURS else eager))


class Decoder:
    """Decodes images to network inputs."""

    def __init__(self) -> None:
        preprocessing = store.locate(None).manifest(_MODEL).preprocessing
        self._plan = crops.plan("single", preprocessing.resized)
        self._mean = np.array(preprocessing.mean, np.float32)  # BGR
        self._threads = ThreadPoolExecutor(CORES)

    def decode(self, data: bytes) -> Pixels:
        """Decode and resize an image."""
        if IS_OURS:
            image = image_decoder.decode(data, max_pixels=_MAX_PIXELS, min_side=self._plan.min_side)
            return crops.canvases(image, self._plan)[0]
        image = Image.open(io.BytesIO(data)).convert("RGB")
        pixels = crops.canvases(image, self._plan)[0]
        return (pixels[..., ::-1] - self._mean).transpose(2, 0, 1)

    def decode_all(self, datas: Sequence[bytes]) -> list[Pixels]:
        """Decode a batch: in a thread per core for our engine, else one by one."""
        several = IS_OURS and len(datas) > 1
        return list((self._threads.map if several else map)(self.decode, datas))


class Network:
    """Ranks the labels of decoded images; thread-safe."""

    def __init__(self) -> None:
        models = store.locate(None)
        self._labels = models.labels(_MODEL)
        self._thread = ThreadPoolExecutor(1)  # one batch at a time has all cores
        self._probabilities = _ours(models) if IS_OURS else _eager(models)

    def rank(self, images: Sequence[Pixels]) -> list[Answer]:
        """Rank a batch of up to `MAX_BATCH` images."""
        rows = np.stack(list(images))
        if IS_OURS:
            return self._thread.submit(self._answers, rows).result()
        return self._answers(rows)

    def _answers(self, rows: Pixels) -> list[Answer]:
        probabilities = self._probabilities(rows)
        best = np.argsort(-probabilities, axis=1)[:, :_TOP]
        pairs = zip(best, probabilities, strict=True)
        return [_answer(self._labels, indices, row[indices]) for indices, row in pairs]


def _ours(models: store.Store) -> Any:
    """Compile our engine's network: OpenVINO in bfloat16 on all cores."""
    from service.engine import openvino_engine  # noqa: PLC0415 - only for this engine
    from service.engine.openvino_executor import Compiled  # noqa: PLC0415 - the same

    model = openvino_engine.read(models, _MODEL, "bfloat16")
    compiled = Compiled(model, "bfloat16", choice("THREADS", ours=CORES, eager=CORES))
    for size in (1, MAX_BATCH):
        compiled.probabilities(np.zeros((size, crops.CROP, crops.CROP, 3), np.uint8))
    return compiled.probabilities


def _eager(models: store.Store) -> Any:
    """Build the network for PyTorch in eager mode."""
    import torch  # noqa: PLC0415 - only for this engine

    from service.engine import weights  # noqa: PLC0415 - the same

    network = weights.load(models, _MODEL).network()

    def probabilities(rows: Pixels) -> Pixels:
        with torch.inference_mode():
            result: Pixels = network(torch.from_numpy(rows)).softmax(1).numpy()
        return result

    return probabilities


def _answer(labels: Sequence[Label], indices: Pixels, values: Pixels) -> Answer:
    pairs = zip(indices.tolist(), values.tolist(), strict=True)
    return {"predictions": [{"label": labels[i].name, "probability": p} for i, p in pairs]}

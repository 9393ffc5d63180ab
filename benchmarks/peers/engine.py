"""The network and the preprocessing that every peer serves, so that only the serving differs.

`ENGINE=ours` is this project's engine; `ENGINE=eager` is what a quick start would deploy: the
same network in float32 as PyTorch runs it, without more ado.
"""

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from service import images, store, views, weights
from service.forward import Forward
from service.manifest import Label
from service.packed import Shape

IS_OURS = os.environ.get("ENGINE", "ours") == "ours"
MAX_BATCH = 16
CORES = os.cpu_count() or 1

_MODEL = "bvlc_googlenet"
_BUCKETS = (1, 2, 4, 8, MAX_BATCH)
_MAX_PIXELS = 50_000_000
_TOP = 5

Answer = dict[str, Any]  # what JSON is made of


def choice(name: str, *, ours: int, eager: int) -> int:
    """Give a number that a server runs with, by engine; a variable of that name overrides it."""
    return int(os.environ.get(name, ours if IS_OURS else eager))


class Decoder:
    """Bytes of a picture to the tensor that a network takes."""

    def __init__(self) -> None:
        preprocessing = store.locate(None).manifest(_MODEL).preprocessing
        self._plan = views.plan("single", preprocessing.resized)
        self._mean = torch.tensor(preprocessing.mean, dtype=torch.float32)  # BGR
        self._threads = ThreadPoolExecutor(CORES)

    def decode(self, data: bytes) -> Tensor:
        """Give (224, 224, 3) uint8 RGB for our engine, else (3, 224, 224) float32 BGR."""
        if IS_OURS:
            picture = images.decode(data, max_pixels=_MAX_PIXELS, enough=self._plan.enough)
            return torch.from_numpy(views.canvases(picture, self._plan)[0])
        picture = Image.open(io.BytesIO(data)).convert("RGB")
        pixels = torch.from_numpy(views.canvases(picture, self._plan)[0])
        return (pixels.flip(-1).float() - self._mean).permute(2, 0, 1)

    def decode_all(self, datas: Sequence[bytes]) -> list[Tensor]:
        """Decode a batch: in as many threads as cores for our engine, else one by one."""
        several = IS_OURS and len(datas) > 1
        return list((self._threads.map if several else map)(self.decode, datas))


class Network:
    """Decoded pictures to their most probable labels."""

    def __init__(self) -> None:
        where = store.locate(None)
        self._labels = where.labels(_MODEL)
        if IS_OURS:
            # OpenMP slows down to a third when a second thread has ever computed, and most
            # peers call from another thread than the one that loads: so one does both.
            self._thread = ThreadPoolExecutor(1)
            self._forward = self._thread.submit(_packed, where).result()
        else:
            self._network = weights.load(where, _MODEL).network()

    def rank(self, pictures: Sequence[Tensor]) -> list[Answer]:
        """Rank a batch of up to `MAX_BATCH` pictures."""
        if IS_OURS:
            return self._thread.submit(self._rank_ours, pictures).result()
        with torch.inference_mode():
            return self._answers(self._network(torch.stack(list(pictures))).softmax(1))

    def _rank_ours(self, pictures: Sequence[Tensor]) -> list[Answer]:
        size = next(bucket for bucket in _BUCKETS if bucket >= len(pictures))
        rows = torch.zeros((size, views.CROP, views.CROP, 3), dtype=torch.uint8)
        torch.stack(list(pictures), out=rows[: len(pictures)])
        with torch.inference_mode():
            return self._answers(self._forward(rows)[: len(pictures)])

    def _answers(self, probabilities: Tensor) -> list[Answer]:
        best = probabilities.topk(_TOP)
        rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [_answer(self._labels, *row) for row in rows]


def _packed(where: store.Store) -> Forward:
    torch.set_num_threads(choice("THREADS", ours=CORES, eager=CORES))
    shapes = [Shape(rows, views.CROP) for rows in _BUCKETS]
    forward = Forward(weights.load(where, _MODEL), torch.device("cpu"), torch.bfloat16, shapes)
    with torch.inference_mode():
        for rows, side in shapes:
            forward(torch.zeros((rows, side, side, 3), dtype=torch.uint8))
    return forward


def _answer(labels: Sequence[Label], indices: list[int], values: list[float]) -> Answer:
    pairs = zip(indices, values, strict=True)
    return {"predictions": [{"label": labels[i].name, "probability": p} for i, p in pairs]}

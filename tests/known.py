"""Images whose answers are known, no two alike: they show that answers are not mixed up."""

import io
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

Scores = dict[str, float]  # a label's probability

FAR = 0.02  # between the answers to two images, in some label's probability
SAME = 0.002  # the most that the batch an image is in changes of it


@dataclass(frozen=True)
class Known:
    """An image and what is to be answered to it."""

    data: bytes
    scores: Scores


def scores(answer: bytes) -> Scores:
    """Read the answer to an image, of all labels asked for."""
    return {one["label"]: one["probability"] for one in json.loads(answer)["predictions"]}


def distance(some: Scores, others: Scores) -> float:
    """Give the largest difference in any label."""
    return max(abs(some.get(label, 0.0) - others.get(label, 0.0)) for label in {*some, *others})


def apart(candidates: Sequence[Known], count: int) -> list[Known]:
    """Choose so many whose answers are far apart, so that one cannot pass for another."""
    chosen: list[Known] = []
    for one in candidates:
        if all(distance(one.scores, other.scores) > FAR for other in chosen):
            chosen.append(one)
        if len(chosen) == count:
            return chosen
    raise AssertionError(f"only {len(chosen)} of {len(candidates)} images are far apart")


def colours(count: int, seed: int = 0) -> list[bytes]:
    """Paint images of one colour each."""
    chance, made = random.Random(seed), []
    for _ in range(count):
        file = io.BytesIO()
        Image.new("RGB", (32, 32), tuple(chance.randrange(256) for _ in "rgb")).save(file, "PNG")
        made.append(file.getvalue())
    return made

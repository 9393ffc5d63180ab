"""Images with known and distinct results, to detect mixed-up responses."""

import io
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

Scores = dict[str, float]  # a label's probability

FAR = 0.02  # minimum difference between two images in some label's probability
SAME = 0.002  # maximum difference by the batch that an image is in


@dataclass(frozen=True)
class Known:
    """An image and its expected probabilities."""

    data: bytes
    scores: Scores


def scores(answer: bytes) -> Scores:
    """Parse a response: the probabilities of its labels."""
    return {entry["label"]: entry["probability"] for entry in json.loads(answer)["predictions"]}


def distance(some: Scores, others: Scores) -> float:
    """Return the largest difference in any label."""
    return max(abs(some.get(label, 0.0) - others.get(label, 0.0)) for label in {*some, *others})


def apart(candidates: Sequence[Known], count: int) -> list[Known]:
    """Choose images whose results differ clearly from each other."""
    chosen: list[Known] = []
    for candidate in candidates:
        if all(distance(candidate.scores, other.scores) > FAR for other in chosen):
            chosen.append(candidate)
        if len(chosen) == count:
            return chosen
    raise AssertionError(f"only {len(chosen)} of {len(candidates)} images are far apart")


def colours(count: int, seed: int = 0) -> list[bytes]:
    """Make PNG images of one random colour each."""
    generator, files = random.Random(seed), []
    for _ in range(count):
        file = io.BytesIO()
        Image.new("RGB", (32, 32), tuple(generator.randrange(256) for _ in "rgb")).save(file, "PNG")
        files.append(file.getvalue())
    return files

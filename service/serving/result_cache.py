"""Answers to images that were seen before, in bounded memory: the longest unasked go first."""

from hashlib import blake2b

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache

from service.imaging.image_decoder import ImageInput

Answer = npt.NDArray[np.float64]  # (classes,), probabilities

_OVERHEAD = 512  # bytes of an entry besides its values, about


def name(image: ImageInput, views: str) -> bytes:
    """Give what an image's answer is kept by: a digest of its content and its views.

    BLAKE2b reads a gigabyte a second, and nobody can make two images that have the same.
    """
    digest = blake2b(views.encode(), digest_size=32)
    if isinstance(image, bytes):
        digest.update(b"\0encoded\0")
        digest.update(image)
    else:
        digest.update(f"\0{image.dtype}{image.shape}\0".encode())
        digest.update(np.ascontiguousarray(image).data)
    return digest.digest()


class Cache:
    """Keeps a model's answers, in so many bytes.

    A model that is loaded anew has a new one, so no answer outlives the weights it is from.
    """

    def __init__(self, most: int) -> None:
        self._answers: LRUCache[bytes, Answer] = LRUCache(most, getsizeof=_nbytes)

    def find(self, name: bytes) -> Answer | None:
        """Give the answer that is kept by this name, if there is one."""
        return self._answers.get(name)

    def keep(self, name: bytes, answer: Answer) -> None:
        """Keep an answer, which nobody may change any more; one too large for all is not kept."""
        answer.setflags(write=False)
        if _nbytes(answer) <= self._answers.maxsize:
            self._answers[name] = answer

    @property
    def nbytes(self) -> int:
        """How many bytes are in use."""
        return int(self._answers.currsize)


def _nbytes(answer: Answer) -> int:
    return answer.nbytes + _OVERHEAD

"""A cache of images' results in bounded memory: least recently used first out."""

import asyncio
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from cachetools import LRUCache

from service.imaging.image_decoder import ImageInput
from service.models.ensemble import Features, Probabilities

_OVERHEAD = 512  # bytes of an entry besides its values, about
_LARGE = 256 * 1024  # bytes, which take a third of a millisecond to hash


def key(image: ImageInput, views: str) -> bytes:
    """Return the cache key of an image's result: a digest of its content and its views.

    BLAKE2b hashes a gigabyte a second and is collision-resistant.
    """
    digest = blake2b(views.encode(), digest_size=32)
    if isinstance(image, bytes):
        digest.update(b"\0encoded\0")
        digest.update(image)
    else:
        digest.update(f"\0{image.dtype}{image.shape}\0".encode())
        digest.update(np.ascontiguousarray(image).data)
    return digest.digest()


async def key_in_background(image: ImageInput, views: str) -> bytes:
    """Return the cache key; that of a large image is computed in a thread, off the event loop."""
    if len(image) > _LARGE or not isinstance(image, bytes):
        return await asyncio.to_thread(key, image, views)
    return key(image, views)


class CachedResult(NamedTuple):
    """An image's probabilities, (classes,), how many views they are the mean of, and features."""

    probabilities: Probabilities
    view_count: int
    features: Features | None = None


class ResultCache:
    """Caches a model's probabilities in at most `max_bytes` bytes.

    A reloaded model has a new cache, so no result outlives the weights it was computed with.
    """

    def __init__(self, max_bytes: int) -> None:
        self._results: LRUCache[bytes, CachedResult] = LRUCache(max_bytes, getsizeof=_nbytes)

    def get(self, key: bytes) -> CachedResult | None:
        """Return the cached result of this key, if there is one."""
        return self._results.get(key)

    def put(self, key: bytes, result: CachedResult) -> None:
        """Cache a result, which becomes read-only; one larger than the cache is not cached."""
        result.probabilities.setflags(write=False)
        if _nbytes(result) <= self._results.maxsize:
            self._results[key] = result

    @property
    def nbytes(self) -> int:
        """The bytes in use."""
        return int(self._results.currsize)


def _nbytes(result: CachedResult) -> int:
    features = 0 if result.features is None else result.features.nbytes
    return result.probabilities.nbytes + features + _OVERHEAD

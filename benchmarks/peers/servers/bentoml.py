"""BentoML: one process, whose dispatcher batches the calls of a model method."""

from typing import cast

import bentoml
from PIL.Image import Image
from PIL.ImageFile import ImageFile

from benchmarks.peers import engine
from benchmarks.peers.engine import Answer


@bentoml.service(workers=1)
class Classifier:
    """Classifies images."""

    def __init__(self) -> None:
        self._decoder = engine.Decoder()
        self._network = engine.Network()

    @bentoml.api(batchable=True, max_batch_size=engine.MAX_BATCH)
    def classify(self, file: list[Image]) -> list[Answer]:
        """Rank a batch of images, which BentoML has opened but not decoded."""
        return self._network.rank(self._decoder.decode_all([_upload(image) for image in file]))


def _upload(image: Image) -> bytes:
    """Return the uploaded bytes; BentoML does not support a form field of bytes."""
    upload = cast("ImageFile", image).fp
    upload.seek(0)
    return cast("bytes", upload.read())

"""Batches of a dataset: augmented patches to train on, single crops of what is held out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from service import cpu_info
from service.engine import prepared_image
from service.imaging import crops, image_decoder
from service.imaging.crops import Pixels, Resize
from service.imaging.image_decoder import Bounds
from service.training import augmentation, loader
from service.training.dataset import Dataset, Sample
from service.training.loader import Batch
from service.training.options import Options
from service.training.process_group import ProcessGroup


@dataclass(frozen=True, slots=True)
class TrainingImages:
    """Loads the batches of each process."""

    dataset: Dataset
    options: Options
    resize: Resize
    max_pixels: int

    @property
    def workers(self) -> int:
        """How many threads load images."""
        return self.options.workers or cpu_info.available()

    def training(self, epoch: int, start: int, group: ProcessGroup) -> Iterator[Batch]:
        """Yield this process's part of each batch of an epoch from step `start`."""
        indices = loader.order(len(self.dataset.training), self.options.seed, epoch)
        parts = self._parts(indices, group)[start:]
        return loader.batches(parts, lambda index: self._patch(index, epoch), self.workers)

    def steps(self, group: ProcessGroup) -> int:
        """Count the batches of an epoch."""
        return len(self._parts(range(len(self.dataset.training)), group))

    def held_out(self, group: ProcessGroup) -> Iterator[Batch]:
        """Yield this process's part of the held-out images."""
        images = self.dataset.held_out[group.rank :: group.size]
        size = self.options.batch
        parts = [images[start : start + size] for start in range(0, len(images), size)]
        return loader.batches(parts, self._crop, self.workers)

    def _parts(self, indices: Sequence[int], group: ProcessGroup) -> list[list[int]]:
        return loader.divide(indices, self.options.batch, rank=group.rank, size=group.size)

    def _patch(self, index: int, epoch: int) -> tuple[Pixels, int]:
        image = self.dataset.training[index]
        random = Random(f"{self.options.seed} {epoch} {index}")
        upright = image_decoder.decode(image.path.read_bytes(), max_pixels=self.max_pixels)
        options = self.options
        patch = augmentation.augment(
            upright,
            random,
            smallest=options.smallest,
            distortion=options.distortion,
            mirror=options.mirror,
        )
        return patch, image.index

    def _crop(self, image: Sample) -> tuple[Pixels, int]:
        """Crop an image as a service does with the view plan `single`."""
        plan = crops.plan("single", self.resize)
        (cut,) = prepared_image.prepare(image.path.read_bytes(), [plan], Bounds(self.max_pixels))
        return cut.canvases[0].astype(np.uint8, copy=False), image.index

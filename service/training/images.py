"""A dataset's images: as they are learnt from, and as they will be served."""

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
from service.training.world import World


@dataclass(frozen=True, slots=True)
class TrainingImages:
    """Reads images, each process its part of them."""

    dataset: Dataset
    options: Options
    resize: Resize
    max_pixels: int

    @property
    def workers(self) -> int:
        """How many threads read."""
        return self.options.workers or cpu_info.available()

    def learnt(self, epoch: int, start: int, world: World) -> Iterator[Batch]:
        """Give this process's part of each batch of an epoch from step `start`."""
        places = loader.order(len(self.dataset.learnt), self.options.seed, epoch)
        wanted = self._divided(places, world)[start:]
        return loader.batches(wanted, lambda place: self._patch(place, epoch), self.workers)

    def steps(self, world: World) -> int:
        """Count the batches of an epoch."""
        return len(self._divided(range(len(self.dataset.learnt)), world))

    def held_out(self, world: World) -> Iterator[Batch]:
        """Give this process's part of what is held out."""
        mine = self.dataset.held_out[world.rank :: world.size]
        size = self.options.batch
        wanted = [mine[start : start + size] for start in range(0, len(mine), size)]
        return loader.batches(wanted, self._served, self.workers)

    def _divided(self, places: Sequence[int], world: World) -> list[list[int]]:
        return loader.divided(places, self.options.batch, rank=world.rank, size=world.size)

    def _patch(self, place: int, epoch: int) -> tuple[Pixels, int]:
        image = self.dataset.learnt[place]
        chance = Random(f"{self.options.seed} {epoch} {place}")
        upright = image_decoder.decode(image.path.read_bytes(), max_pixels=self.max_pixels)
        options = self.options
        patch = augmentation.augment(
            upright,
            chance,
            smallest=options.smallest,
            distortion=options.distortion,
            mirror=options.mirror,
        )
        return patch, image.index

    def _served(self, image: Sample) -> tuple[Pixels, int]:
        plan = crops.plan("single", self.resize)
        (cut,) = prepared_image.prepare(image.path.read_bytes(), [plan], Bounds(self.max_pixels))
        return cut.canvases[0].astype(np.uint8, copy=False), image.index

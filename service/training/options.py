"""Options of a training run; the defaults are the paper's, where it states any."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from service.settings import MEMBERS, PLAIN

ARCHITECTURE, WIDTH = "googlenet", 1.0  # of a new network
RATE = 0.002  # learning rate of a new network
GENTLE = 0.0002  # of a network with a start model, to keep what it has learnt


class Options(BaseModel):
    """How a model is trained on a folder that has a folder of images for each class."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    folder: Path
    name: Annotated[str, Field(pattern=f"^{PLAIN}$", description="name of the model")]
    start: Annotated[
        str | None,
        Field(alias="from", description="model to start from, with a new last layer"),
    ] = None
    freeze: Annotated[
        str | None,
        Field(description="module up to which weights are frozen, such as inception.5b"),
    ] = None
    architecture: Annotated[
        str | None,
        Field(
            description="network to train from scratch: lenet5, resnet18 and so on "
            f"(default: {ARCHITECTURE}, with --from that model's)"
        ),
    ] = None
    width: Annotated[
        float | None,
        Field(
            gt=0,
            le=8,
            description="times as many filters as googlenet has "
            f"(default: {WIDTH:g}, with --from that model's)",
        ),
    ] = None
    epochs: Annotated[int, Field(ge=1, description="most epochs")] = 100
    patience: Annotated[
        int,
        Field(ge=1, description="stop after so many epochs without progress on held-out images"),
    ] = 20
    batch: Annotated[int, Field(ge=1, le=65536, description="images in a step")] = 32
    rate: Annotated[
        float | None,
        Field(
            gt=0,
            description="learning rate of the first epochs "
            f"(default: {RATE}, with --from {GENTLE})",
        ),
    ] = None
    decay: Annotated[float, Field(ge=0, description="weight decay")] = 0.0002
    average: Annotated[
        float, Field(ge=0, lt=1, description="decay of the averaged weights per step")
    ] = 0.999
    held_out: Annotated[
        float, Field(gt=0, lt=1, description="share of each class that is held out")
    ] = 0.2
    smallest: Annotated[
        float, Field(gt=0, le=1, description="least share of an image's area in a patch")
    ] = 0.08
    mirror: Annotated[bool, Field(description="whether images may be mirrored")] = True
    distortion: Annotated[
        float,
        Field(ge=0, lt=1, description="largest change of brightness, contrast and saturation"),
    ] = 0.5
    dropout: Annotated[
        float, Field(ge=0, le=1.4, description="factor of the published dropout rate")
    ] = 1.0
    seed: Annotated[int, Field(ge=0, description="seed of random numbers")] = 0
    members: Annotated[
        int,
        Field(
            ge=1,
            le=MEMBERS,
            description="models to train for an ensemble, NAME_1, NAME_2, ..., each with another "
            "seed",
        ),
    ] = 1
    workers: Annotated[
        int, Field(ge=0, le=1024, description="threads that load images; 0: one per core")
    ] = 0
    description: Annotated[str, Field(description="description of the model")] = ""
    licence: Annotated[str, Field(description="licence of the model")] = "not stated"
    notice: Annotated[str | None, Field(description="notice that every response carries")] = None

    def each(self) -> "tuple[Options, ...]":
        """Return the options of each member's training; of a single model, these.

        Raises `ValidationError` where a member's name or seed is not allowed.
        """
        if self.members == 1:
            return (self,)
        chosen = self.model_dump() | {"members": 1}
        return tuple(
            Options(**chosen | {"name": f"{self.name}_{number + 1}", "seed": self.seed + number})
            for number in range(self.members)
        )

    @property
    def first_rate(self) -> float:
        """The learning rate of the first epochs."""
        return self.rate or (GENTLE if self.start else RATE)

"""What a person may choose of a training; the defaults are the paper's, as far as it says."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from service.settings import MEMBERS, PLAIN

ARCHITECTURE, WIDTH = "googlenet", 1.0  # of a network that begins anew
RATE = 0.002  # of such a one
GENTLE = 0.0002  # of one that has learnt already, and should not forget it


class Options(BaseModel):
    """How a model is trained on a folder that has a folder of images for each class."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    folder: Path
    name: Annotated[str, Field(pattern=f"^{PLAIN}$", description="what the model is to be called")]
    start: Annotated[
        str | None,
        Field(alias="from", description="model to go on from, with a new last layer"),
    ] = None
    freeze: Annotated[
        str | None,
        Field(description="module up to which nothing is learnt, such as inception.5b"),
    ] = None
    architecture: Annotated[
        str | None,
        Field(
            description="network that is learnt from nothing; lenet5, resnet18 and so on "
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
    epochs: Annotated[int, Field(ge=1, description="most times that every image is seen")] = 100
    patience: Annotated[
        int, Field(ge=1, description="epochs without progress on held-out images to end after")
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
        float, Field(ge=0, lt=1, description="what a step keeps of the averaged weights")
    ] = 0.999
    held_out: Annotated[
        float, Field(gt=0, lt=1, description="share of each class that is never learnt from")
    ] = 0.2
    smallest: Annotated[
        float, Field(gt=0, le=1, description="least share of an image that a patch has")
    ] = 0.08
    mirror: Annotated[bool, Field(description="whether a mirrored image is still of its class")] = (
        True
    )
    distortion: Annotated[
        float, Field(ge=0, lt=1, description="most change of brightness, contrast and colour")
    ] = 0.5
    dropout: Annotated[
        float, Field(ge=0, le=1.4, description="times as much dropout as published")
    ] = 1.0
    seed: Annotated[int, Field(ge=0, description="what chance begins with")] = 0
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
        int, Field(ge=0, le=1024, description="threads that read images; 0: one per core")
    ] = 0
    description: Annotated[str, Field(description="of the model, for whoever looks at it")] = ""
    licence: Annotated[str, Field(description="of the model, for whoever uses it")] = "not stated"
    notice: Annotated[
        str | None, Field(description="what every answer has to say of the model")
    ] = None

    def each(self) -> "tuple[Options, ...]":
        """Give the options of each member's training; of a single model, these.

        A member's name and seed may not be what is allowed, and raise `ValidationError`.
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

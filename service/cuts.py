"""What a picture brings to a batch: its canvases, decoded once."""

from collections.abc import Sequence
from dataclasses import dataclass

from service import images, views
from service.images import Bounds
from service.views import Pixels, Plan


@dataclass(frozen=True, slots=True)
class Cuts:
    """What a picture brings for one member: its canvases and the views to cut from them."""

    plan: Plan
    canvases: tuple[Pixels, ...]
    size: tuple[int, int] = (1, 1)  # the picture's width and height, or a part of both
    target: int = 0  # the class that maps are of


def prepare(picture: bytes, plans: Sequence[Plan], bounds: Bounds, target: int = 0) -> list[Cuts]:
    """Decode once and cut each plan's canvases; members with one plan share them.

    Raises what `images.decode` does.
    """
    enough = max(plan.enough for plan in plans)
    upright = images.decode(
        picture, max_pixels=bounds.max_pixels, seconds=bounds.seconds, enough=enough
    )
    size = upright.size
    made = {plan: Cuts(plan, views.canvases(upright, plan), size, target) for plan in plans}
    return [made[plan] for plan in plans]

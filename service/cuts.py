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


def prepare(picture: bytes, plans: Sequence[Plan], bounds: Bounds) -> list[Cuts]:
    """Decode once and cut each plan's canvases; members with one plan share them.

    Raises what `images.decode` does.
    """
    enough = max(plan.enough for plan in plans)
    upright = images.decode(
        picture, max_pixels=bounds.max_pixels, seconds=bounds.seconds, enough=enough
    )
    made = {plan: Cuts(plan, views.canvases(upright, plan)) for plan in plans}
    return [made[plan] for plan in plans]

"""What a picture brings to a batch, decoded once for all members."""

import io

import numpy as np
from PIL import Image

from service import cuts, views
from service.images import Bounds
from service.views import Resize

WARP, SHORT = (views.plan("single", Resize(rule, 256)) for rule in ("warp", "short"))


def picture() -> bytes:
    """A picture of noise that is no square, so that it matters how it is resized."""
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


def test_members_with_one_plan_share_what_was_cut() -> None:
    one, other, same = cuts.prepare(picture(), [WARP, SHORT, WARP], Bounds(10**8))
    assert one is same
    assert [each.plan for each in (one, other)] == [WARP, SHORT]
    assert not np.array_equal(one.canvases[0], other.canvases[0])


def test_each_member_has_the_canvases_of_its_own_plan() -> None:
    upright = Image.open(io.BytesIO(picture()))
    for prepared in cuts.prepare(picture(), [SHORT, WARP], Bounds(10**8)):
        (expected,) = views.canvases(upright, prepared.plan)
        assert np.array_equal(prepared.canvases[0], expected)

"""Colours by an embedded profile come out as a browser shows them; a broken one is ignored."""

import struct
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pytest
from mutations import chunk, encoded
from PIL import Image

from service.imaging.colour_profile import MAX_BYTES, to_srgb
from service.imaging.image_decoder import decode

LIMIT = 1_000_000
D50 = np.array([0.9642, 1, 0.8249])
BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
D65 = (0.3127, 0.3290)
Matrix = npt.NDArray[np.float64]

# Primaries, white and gamma; no gamma is sRGB's curve.
SPACES = {
    "sRGB": (((0.64, 0.33), (0.30, 0.60), (0.15, 0.06)), None),
    "Display P3": (((0.68, 0.32), (0.265, 0.69), (0.15, 0.06)), None),
    "Adobe RGB": (((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)), 563 / 256),
    "Generic RGB": (((0.63, 0.34), (0.295, 0.605), (0.155, 0.077)), 1.8),
}


def fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def written(colours: bytes, tags: Mapping[bytes, bytes], connection: bytes = b"XYZ ") -> bytes:
    """Write an ICC profile of these tags."""
    table, body = b"", b""
    start = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += struct.pack(">4sII", name, start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(
        ">I4sI4s4s4s", start + len(body), b"none", 0x02400000, b"mntr", colours, connection
    )
    head = head.ljust(36, b"\0") + b"acsp" + bytes(28) + fixed(*D50)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def curve(gamma: float | None) -> bytes:
    if gamma is None:
        values = fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
        return b"para\0\0\0\0" + struct.pack(">HH", 3, 0) + values
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))


def matrix(name: str) -> Matrix:
    """Compute what makes linear colours XYZ under D50."""
    primaries, _ = SPACES[name]
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    white = np.array([D65[0] / D65[1], 1, (1 - sum(D65)) / D65[1]])
    adapted = np.linalg.inv(BRADFORD) @ np.diag((BRADFORD @ D50) / (BRADFORD @ white)) @ BRADFORD
    result: Matrix = adapted @ columns @ np.diag(np.linalg.solve(columns, white))
    return result


def profile(name: str, extra: Mapping[bytes, bytes] | None = None) -> bytes:
    """Write the profile of an RGB space."""
    columns, gamma = matrix(name), SPACES[name][1]
    tags = {
        letter + b"XYZ": b"XYZ \0\0\0\0" + fixed(*columns[:, at])
        for at, letter in enumerate((b"r", b"g", b"b"))
    }
    tags |= {letter + b"TRC": curve(gamma) for letter in (b"r", b"g", b"b")}
    return written(b"RGB ", {b"wtpt": b"XYZ \0\0\0\0" + fixed(*D50), **tags, **(extra or {})})


def grey_profile(gamma: float) -> bytes:
    white = b"XYZ \0\0\0\0" + fixed(*D50)
    return written(b"GRAY", {b"wtpt": white, b"kTRC": curve(gamma)})


def linear(shares: Matrix, gamma: float | None) -> Matrix:
    if gamma is not None:
        return np.asarray(shares**gamma)
    return np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)


def gamma_encoded(light: Matrix) -> Matrix:
    """Compute the pixels of sRGB."""
    curved = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.asarray(curved * 255)


def browser(pixels: npt.NDArray[np.uint8], name: str) -> Matrix:
    """Compute what these pixels are in sRGB, by the definition of both spaces."""
    xyz = linear(pixels / 255, SPACES[name][1]) @ matrix(name).T
    return gamma_encoded((xyz @ np.linalg.inv(matrix("sRGB")).T).clip(0, 1))


def colours(width: int = 24, height: int = 16) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(noise)


def pixels(data: bytes) -> Matrix:
    return np.asarray(decode(data, max_pixels=LIMIT), np.float64)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_colours_of_a_space_become_those_of_srgb(kind: str, name: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(colours(), kind, icc_profile=profile(name), **options)
    assert np.abs(pixels(data) - browser(np.asarray(colours()), name)).max() <= 2


@pytest.mark.parametrize("kind", ["JPEG", "AVIF"])
def test_colours_of_lossy_formats_become_those_of_srgb(kind: str) -> None:
    image = colours().resize((120, 80), Image.Resampling.BICUBIC)
    options = {"quality": 95, "subsampling": "4:4:4"}
    plain = encoded(image, kind, **options)
    data = encoded(image, kind, icc_profile=profile("Generic RGB"), **options)
    stored = np.asarray(decode(plain, max_pixels=LIMIT))
    assert np.abs(pixels(data) - browser(stored, "Generic RGB")).max() <= 2


def test_colours_in_srgb_are_unchanged() -> None:
    data = encoded(colours(), "PNG", icc_profile=profile("sRGB"))
    assert (pixels(data) == np.asarray(colours())).all()


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_grey_has_profiles_of_its_own(mode: str) -> None:
    ramp = Image.frombytes("L", (256, 1), bytes(range(256)))
    deep = Image.fromarray(np.arange(0, 65536, 257, np.uint16)[None])
    data = encoded(
        deep if mode == "I;16" else ramp.convert(mode), "PNG", icc_profile=grey_profile(1.8)
    )
    light = np.asarray((np.arange(256) / 255) ** 1.8)
    assert np.abs(pixels(data)[0, :, 0] - gamma_encoded(light)).max() <= 2


@pytest.mark.parametrize("mode", ["L", "P", "RGB"])
@pytest.mark.parametrize("note", [b"", bytes(100_000)])
def test_grey_palette_and_rgb_may_have_an_rgb_profile_of_any_size(mode: str, note: bytes) -> None:
    image = {"L": colours().convert("L"), "P": colours().quantize(16), "RGB": colours()}[mode]
    data = encoded(image, "PNG", icc_profile=profile("Generic RGB", {b"note": note}))
    stored = np.asarray(image.convert("RGB"))
    assert np.abs(pixels(data) - browser(stored, "Generic RGB")).max() <= 2


def test_alpha_is_not_converted() -> None:
    image = colours().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    data = encoded(image, "PNG", icc_profile=profile("Generic RGB"))
    shares = np.asarray(image, np.float64)[..., 3:] / 255
    expected = browser(np.asarray(colours()), "Generic RGB") * shares + 255 * (1 - shares)
    assert np.abs(pixels(data) - expected).max() <= 3


def cmyk_profile() -> bytes:
    """Write a press whose inks are grey: white, and each ink takes a quarter of the light."""
    steps = np.stack(np.meshgrid(*[[0.0, 1.0]] * 4, indexing="ij"), -1).reshape(-1, 4)
    lightness = 100 * (1 - steps.mean(1))
    lab = np.stack([lightness * 652.8, *[np.full(16, 32768.0)] * 2], 1).astype(">u2").tobytes()
    ends = np.array([0, 65535], ">u2").tobytes()
    table = b"mft2\0\0\0\0\4\3\2\0" + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1) + struct.pack(">HH", 2, 2)
    white = b"XYZ \0\0\0\0" + fixed(*D50)
    return written(b"CMYK", {b"wtpt": white, b"A2B0": table + ends * 4 + lab + ends * 3}, b"Lab ")


def test_cmyk_is_converted_by_its_profile() -> None:
    image = Image.new("CMYK", (16, 16), (255, 255, 0, 0))
    plain = pixels(encoded(image, "JPEG", quality=100))
    data = encoded(image, "JPEG", quality=100, icc_profile=cmyk_profile())
    assert np.abs(plain[5, 5] - (0, 0, 255)).max() <= 3  # without a profile
    assert np.abs(pixels(data)[5, 5] - 119).max() <= 3  # half the lightness


BROKEN = {
    "nothing": b"",
    "a text": b"a profile of " + b"RGB " * 40,
    "zeros": bytes(500),
    "cut short": profile("Generic RGB")[:200],
    "its head": profile("Generic RGB")[:128],
    "without curves": written(b"RGB ", {b"wtpt": b"XYZ \0\0\0\0" + fixed(*D50)}),
    "of too many tags": profile("Generic RGB")[:128] + b"\0\0\0\x65" + bytes(2000),
    "of tags behind its end": profile("Generic RGB").replace(b"rTRC\0", b"rTRC\x7f"),
    "of other colours": cmyk_profile(),
    "of grey": grey_profile(1.8),
    "too long": profile("Generic RGB") + bytes(MAX_BYTES),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_profile_that_is_of_no_use_is_ignored(kind: str, name: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    plain = encoded(colours(), kind, **options)
    data = encoded(colours(), kind, icc_profile=BROKEN[name], **options)
    assert (pixels(data) == pixels(plain)).all()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"a name without an end",
        b"a" * 80 + b"\0\0",
        b"a\0\0not compressed",
        b"a\0\0\x78\x9c\x63",
    ],
)
def test_a_profile_of_a_png_that_cannot_be_inflated_is_ignored(content: bytes) -> None:
    data = encoded(colours(), "PNG")
    given = data[:33] + chunk(b"iCCP", content) + data[33:]
    assert (pixels(given) == pixels(data)).all()


def test_tags_that_are_not_used_are_left_out() -> None:
    """A chain of elements may take any time to compute; its tag would come before all others."""
    known = profile("Generic RGB")
    with_chain = profile("Generic RGB", {b"D2B0": b"mpet" + bytes(60), b"A2B1": bytes(40)})
    converted = np.asarray(to_srgb(colours(), known))
    assert (converted == np.asarray(to_srgb(colours(), with_chain))).all()
    assert (converted != np.asarray(colours())).any()


def test_thousands_of_changed_profiles_make_an_image() -> None:
    chance = np.random.default_rng(0)
    good = [profile("Adobe RGB"), cmyk_profile(), grey_profile(2.2)]
    modes = ["RGB", "CMYK", "L"]
    for _ in range(1000):
        which = int(chance.integers(3))
        changed = bytearray(good[which])
        for at in (chance.random(4) ** 2 * len(changed)).astype(int):
            changed[at] = int(chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.integers(256)]))
        image = Image.new(modes[which], (4, 4))
        assert to_srgb(image, bytes(changed)).mode == "RGB"

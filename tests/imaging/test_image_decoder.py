"""Bytes to an upright RGB image: every format, every mode, everything that can be wrong."""

import io
import struct
import subprocess
import sys
import warnings
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from service.errors import ServiceError, TooLarge, UnreadableImage, UnsupportedType
from service.imaging.image_decoder import decode

LIMIT = 50_000_000
KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
LOSSLESS = ("PNG", "GIF", "BMP", "TIFF")
MAGICS = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"RIFF\x40\0\0\0WEBP",
    b"RIFF\x40\0\0\0WEBPVP8 ",
    b"RIFF\x40\0\0\0WEBPVP8L",
    b"RIFF\x40\0\0\0WEBPVP8X",
    b"GIF87a",
    b"GIF89a",
    b"BM",
    b"II*\0\x08\0\0\0",
    b"MM\0*\0\0\0\x08",
    b"II+\0\x08\0\0\0",
    b"MM\0+\0\x08\0\0",
    b"\0\0\0\x14ftypavif\0\0\0\0avif\0\0\0\x30meta\0\0\0\0",
)
ORIENTATION = 0x0112
WHITE, BLACK, RED, GREEN = (255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 128, 0)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def row(data: bytes) -> list[tuple[int, int, int]]:
    """Decode an image and give the pixels of its first row."""
    image = decode(data, max_pixels=LIMIT)
    assert image.mode == "RGB"
    return [image.getpixel((x, 0)) for x in range(image.width)]


def grey(*values: int) -> list[tuple[int, int, int]]:
    return [(value, value, value) for value in values]


def patches(width: int = 32, height: int = 16) -> Image.Image:
    """An image that looks different from every side: four colours, smooth enough for JPEG."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    image.paste((0, 0, 200), (0, height // 2, width // 2, height))
    image.paste((240, 240, 90), (width // 2, height // 2, width, height))
    return image


def difference(a: Image.Image, b: Image.Image) -> int:
    assert a.size == b.size
    return int(np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).max())


def outcome(data: bytes, max_pixels: int = 1_000_000) -> Image.Image | ServiceError:
    """Decode; any error but these three is a bug."""
    try:
        image = decode(data, max_pixels=max_pixels)
    except (UnsupportedType, UnreadableImage, TooLarge) as error:
        return error
    assert image.mode == "RGB"
    assert image.width * image.height <= max_pixels
    return image


def chunk(name: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + check


def png(pixels: npt.NDArray[np.generic], colour: int, *, depth: int, extra: bytes = b"") -> bytes:
    """Write a PNG of one row in a form that Pillow reads and does not write."""
    header = struct.pack(">IIBBBBB", len(pixels), 1, depth, colour, 0, 0, 0)
    content = zlib.compress(b"\0" + pixels.tobytes())
    chunks = chunk(b"IHDR", header) + extra + chunk(b"IDAT", content) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


# Formats.


@pytest.mark.parametrize("kind", KINDS)
def test_every_accepted_format_is_decoded(kind: str) -> None:
    image = decode(encoded(patches(), kind), max_pixels=LIMIT)
    assert image.mode == "RGB"
    error = np.asarray(image, np.int16) - np.asarray(patches(), np.int16)
    assert np.abs(error).mean() <= (0 if kind in LOSSLESS else 12)


def test_big_and_little_endian_and_bigtiff_are_tiff() -> None:
    for data in (
        encoded(patches(), "TIFF", big_tiff=True),
        encoded(Image.frombytes("I;16B", (1, 1), b"\x80\0"), "TIFF"),
    ):
        assert decode(data, max_pixels=LIMIT).mode == "RGB"


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "raw"])
def test_compressed_tiff_is_decoded(compression: str) -> None:
    data = encoded(patches(), "TIFF", compression=compression)
    assert difference(decode(data, max_pixels=LIMIT), patches()) == 0


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("PPM", "this is Netpbm"),
        ("ICO", "this is ICO"),
        ("JPEG2000", "this is JPEG 2000; convert it to JPEG"),
        ("PDF", "this is PDF"),
        ("TGA", "not a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF image"),
        ("PCX", "not a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF image"),
    ],
)
def test_a_format_pillow_knows_but_the_service_does_not_accept_is_unsupported(
    kind: str, sentence: str
) -> None:
    with pytest.raises(UnsupportedType, match=sentence):
        decode(encoded(patches(), kind), max_pixels=LIMIT)


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"\xff\xd8", b"hello, I am photo.jpg", b"RIFF1234WAVE"]
)
def test_an_unknown_signature_is_unsupported(data: bytes) -> None:
    with pytest.raises(UnsupportedType):
        decode(data, max_pixels=LIMIT)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, WHITE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert row(data) == [RED] * 8


# Modes.


def test_grey_becomes_rgb() -> None:
    image = Image.frombytes("L", (3, 1), bytes([0, 100, 255]))
    assert row(encoded(image, "PNG")) == grey(0, 100, 255)


def test_one_bit_becomes_black_and_white() -> None:
    image = Image.frombytes("L", (2, 1), bytes([0, 255])).convert("1")
    assert row(encoded(image, "PNG")) == [BLACK, WHITE]


def palette() -> Image.Image:
    image = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
    image.putpalette([*RED, *GREEN, *BLACK])
    return image


@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_palette_is_looked_up(kind: str) -> None:
    assert row(encoded(palette(), kind)) == [RED, GREEN, BLACK]


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_entry_becomes_white(kind: str) -> None:
    assert row(encoded(palette(), kind, transparency=0)) == [WHITE, GREEN, BLACK]


def test_a_half_transparent_palette_entry_is_blended() -> None:
    data = encoded(palette(), "PNG", transparency=bytes([255, 255, 128]))
    assert row(data) == [RED, GREEN, (127, 127, 127)]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_alpha_goes_over_white(kind: str) -> None:
    image = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((0, 128, 255)):
        image.putpixel((x, 0), (255, 0, 0, alpha))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    assert row(encoded(image, kind, **options)) == [WHITE, (255, 127, 127), RED]


def test_grey_with_alpha_goes_over_white() -> None:
    image = Image.frombytes("LA", (3, 1), bytes([0, 0, 0, 128, 0, 255]))
    assert row(encoded(image, "PNG")) == grey(255, 127, 0)


def test_a_transparent_colour_of_an_rgb_png_becomes_white() -> None:
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), GREEN)
    assert row(encoded(image, "PNG", transparency=RED)) == [WHITE, GREEN]


def test_a_cmyk_jpeg_is_converted_and_a_profile_of_other_colours_ignored() -> None:
    image = patches().convert("CMYK")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    options = {"quality": 100, "subsampling": 0}
    plain = decode(encoded(image, "JPEG", **options), max_pixels=LIMIT)
    profiled = decode(encoded(image, "JPEG", icc_profile=profile, **options), max_pixels=LIMIT)
    assert difference(plain, patches()) <= 8
    assert difference(plain, profiled) == 0


@pytest.mark.parametrize("mode", ["YCbCr", "LAB", "CMYK", "RGBX"])
def test_other_colour_spaces_of_tiff_become_rgb(mode: str) -> None:
    data = encoded(Image.new("RGB", (1, 1), (200, 30, 60)).convert(mode), "TIFF")
    assert np.abs(np.subtract(row(data)[0], (200, 30, 60))).max() <= 3


# Frames that are smaller than their canvas.


def small_gif(box: tuple[int, int, int, int], canvas: tuple[int, int] = (8, 8)) -> bytes:
    """Write a red frame at the left and top of this box on a larger canvas."""
    left, top, right, bottom = box
    image = Image.new("P", (right - left, bottom - top), 0)
    image.putpalette([*RED, *GREEN])
    data = bytearray(encoded(image, "GIF"))
    data[6:10] = struct.pack("<HH", *canvas)
    at = data.index(b",", 13 + (6 << (data[10] & 7)))
    data[at + 1 : at + 5] = struct.pack("<HH", left, top)
    return bytes(data)


@pytest.mark.parametrize("box", [(0, 0, 4, 4), (2, 1, 5, 8), (7, 7, 8, 8), (0, 0, 8, 8)])
def test_what_a_gif_does_not_draw_is_white(box: tuple[int, int, int, int]) -> None:
    expected = Image.new("RGB", (8, 8), WHITE)
    expected.paste(RED, box)
    assert difference(decode(small_gif(box), max_pixels=LIMIT), expected) == 0


def test_the_canvas_of_a_gif_grows_with_a_frame_that_is_larger() -> None:
    image = decode(small_gif((2, 0, 6, 4), canvas=(4, 4)), max_pixels=LIMIT)
    expected = Image.new("RGB", (6, 4), WHITE)
    expected.paste(RED, (2, 0, 6, 4))
    assert difference(image, expected) == 0


def test_what_an_animated_webp_does_not_draw_is_white() -> None:
    """Pillow alone leaves it black, without an alpha channel."""
    frame = encoded(Image.new("RGB", (4, 4), RED), "WEBP", lossless=True)[12:]

    def riff(name: bytes, content: bytes) -> bytes:
        return name + struct.pack("<I", len(content)) + content

    def size(*values: int) -> bytes:
        return b"".join(value.to_bytes(3, "little") for value in values)

    body = riff(b"VP8X", b"\x02\0\0\0" + size(7, 7)) + riff(b"ANIM", bytes(6))
    body += riff(b"ANMF", size(1, 1, 3, 3, 100) + b"\0" + frame)
    expected = Image.new("RGB", (8, 8), WHITE)
    expected.paste(RED, (2, 2, 6, 6))
    assert difference(decode(riff(b"RIFF", b"WEBP" + body), max_pixels=LIMIT), expected) == 0


# 16 and 32 bits.

DEEP = np.array([0, 1000, 32768, 65535], np.uint16)
SHALLOW = grey(0, 4, 128, 255)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_and_not_clipped(kind: str) -> None:
    assert row(encoded(Image.fromarray(DEEP[None]), kind)) == SHALLOW


def test_big_endian_16_bit_grey_is_scaled() -> None:
    image = Image.frombytes("I;16B", (4, 1), DEEP.astype(">u2").tobytes())
    assert row(encoded(image, "TIFF")) == SHALLOW


def test_16_bit_rgb_is_scaled() -> None:
    data = png(DEEP[[[0, 2, 3], [3, 1, 0]]].astype(">u2"), 2, depth=16)
    assert row(data) == [(0, 128, 255), (255, 3, 0)]


def test_16_bit_grey_with_alpha_goes_over_white() -> None:
    data = png(np.array([[0, 0], [0, 65535], [32768, 65535]], ">u2"), 4, depth=16)
    assert row(data) == grey(255, 0, 128)


def test_16_bit_grey_with_a_transparent_value_is_scaled_and_not_clipped() -> None:
    data = png(DEEP.astype(">u2"), 0, depth=16, extra=chunk(b"tRNS", struct.pack(">H", 1000)))
    assert row(data) == grey(0, 255, 128, 255)


@pytest.mark.parametrize(("depth", "white"), [(1, 1), (2, 3), (4, 15), (8, 255), (16, 65535)])
@pytest.mark.parametrize("is_black", [True, False])
def test_a_transparent_grey_of_any_depth_becomes_white(
    depth: int, white: int, *, is_black: bool
) -> None:
    """Black, the middle or 0, and white; of these one is transparent, the others stay."""
    values = [0, white // 2, white, 0]
    bits = "".join(f"{value:0{depth}b}" for value in values)
    packed = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    header = struct.pack(">IIBBBBB", len(values), 1, depth, 0, 0, 0, 0)
    clear = 0 if is_black else white // 2
    chunks = [
        (b"IHDR", header),
        (b"tRNS", struct.pack(">H", clear)),
        (b"IDAT", zlib.compress(b"\0" + packed)),
        (b"IEND", b""),
    ]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)
    shown = [255 if value == clear else round(value / white * 255) for value in values]
    assert row(data) == grey(*shown)


def test_a_transparent_colour_of_16_bits_is_compared_with_all_of_them() -> None:
    """Pillow keeps the upper 8 bits, by which the second pixel has the colour, too."""
    pixels = np.array([[0x1234, 0x5678, 0x9ABC], [0x1234, 0x5678, 0x9A00], [0, 0, 0]], ">u2")
    clear = chunk(b"tRNS", struct.pack(">3H", *pixels[0].tolist()))
    data = png(pixels, 2, depth=16, extra=clear)
    assert row(data) == [WHITE, (0x12, 0x56, 0x9A), BLACK]


def test_only_the_bits_of_a_sample_are_compared_with_the_transparent_colour() -> None:
    pixels = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    clear = chunk(b"tRNS", struct.pack(">3H", 0xFF01, 2, 3))
    assert row(png(pixels, 2, depth=8, extra=clear)) == [WHITE, (4, 5, 6)]


@pytest.mark.parametrize("content", [b"", b"\0", b"\0\0\0\0\0\0\0"])
def test_a_transparent_colour_of_odd_length_is_ignored(content: bytes) -> None:
    pixels = np.array([[1, 2, 3]], np.uint8)
    assert row(png(pixels, 2, depth=8, extra=chunk(b"tRNS", content))) == [(1, 2, 3)]


def test_32_bit_integers_are_scaled_by_their_range() -> None:
    image = Image.fromarray(np.array([[-(2**31), 0, 2**30, 2**31 - 1]], np.int32))
    assert row(encoded(image, "TIFF")) == grey(0, 128, 191, 255)


def test_32_bit_integers_that_would_all_be_one_grey_are_refused() -> None:
    image = Image.fromarray(np.array([[0, 32768, 65535]], np.int32))
    with pytest.raises(UnsupportedType, match=r"with values from 0 to 65535 only\)"):
        decode(encoded(image, "TIFF"), max_pixels=LIMIT)
    same = Image.fromarray(np.full((1, 2), 5, np.int32))
    assert row(encoded(same, "TIFF")) == grey(128, 128)


NAN, INF = float("nan"), float("inf")


def floats(*values: float) -> bytes:
    return encoded(Image.fromarray(np.array([values], np.float32)), "TIFF")


@pytest.mark.parametrize("white", [1.0, 255.0, 1e-3, 3e38])
def test_floats_are_scaled_from_the_darkest_to_the_brightest(white: float) -> None:
    assert row(floats(0, white / 2, white)) == grey(0, 128, 255)


def test_floats_may_be_negative() -> None:
    assert row(floats(-1, 0, 1)) == grey(0, 128, 255)


@pytest.mark.parametrize("odd", [NAN, INF, -INF])
def test_floats_that_are_not_finite_leave_the_others_as_they_are(odd: float) -> None:
    assert row(floats(0, 0.5, 1, odd))[:3] == grey(0, 128, 255)


@pytest.mark.parametrize(
    "values",
    [(NAN, NAN), (INF, INF), (-INF, -INF), (NAN, INF, -INF), (0, 1e-45), (-3.4e38, 3.4e38), (5, 5)],
)
def test_floats_without_a_usable_range_still_make_an_image(values: tuple[float, ...]) -> None:
    assert len(row(floats(*values))) == len(values)


# Upright.


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_image_is_turned_upright(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(patches(), kind, exif=exif)
    reference = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    image = decode(data, max_pixels=LIMIT)
    assert image.size == ((32, 16) if orientation < 5 else (16, 32))
    assert difference(image, reference.convert("RGB")) == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_eight_orientations_show_the_same_image(orientation: int) -> None:
    """The stored pixels are transposed by the tag's inverse."""
    stored = {
        1: patches(),
        2: patches().transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: patches().transpose(Image.Transpose.ROTATE_180),
        4: patches().transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: patches().transpose(Image.Transpose.TRANSPOSE),
        6: patches().transpose(Image.Transpose.ROTATE_90),
        7: patches().transpose(Image.Transpose.TRANSVERSE),
        8: patches().transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(stored, "PNG", exif=exif)
    assert difference(decode(data, max_pixels=LIMIT), patches()) == 0


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_makes_no_sense_is_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(patches(), "PNG", exif=exif)
    assert difference(decode(data, max_pixels=LIMIT), patches()) == 0


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"garbage, not a directory",
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\xff\xff",
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\xff\xff\0\0\0\0",  # so many values
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x07\0\x01\0\0\0\x06\0\0\0\0\0\0\0",  # not a number
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # as in production: Pillow warns of some
def test_a_broken_exif_block_is_no_reason_to_refuse_an_image(block: bytes, kind: str) -> None:
    data = encoded(patches(), kind, exif=b"Exif\0\0" + block)
    assert decode(data, max_pixels=LIMIT).size == (32, 16)


# Decoding a JPEG at a fraction of its size.


def smooth(width: int, height: int) -> Image.Image:
    """An image without edges, of which JPEG keeps nearly everything."""
    noise = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("size", "min_side", "expected"),
    [
        ((1600, 1200), 512, (800, 600)),
        ((1200, 1600), 512, (600, 800)),
        ((1600, 1200), 300, (400, 300)),
        ((1600, 1200), 20, (200, 150)),  # an eighth is the smallest fraction
        ((1001, 801), 400, (501, 401)),
        ((1600, 1200), 601, (1600, 1200)),
        ((4000, 300), 256, (4000, 300)),
        ((100, 80), 512, (100, 80)),
    ],
)
def test_a_jpeg_is_decoded_at_the_smallest_sufficient_fraction(
    size: tuple[int, int], min_side: int, expected: tuple[int, int]
) -> None:
    image = decode(encoded(smooth(*size), "JPEG"), max_pixels=LIMIT, min_side=min_side)
    assert image.size == expected
    assert image.mode == "RGB"
    assert min(size) < min_side or min(image.size) >= min_side


@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 700))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_no_jpeg_has_less_than_is_enough_unless_it_came_with_less(
    width: int, height: int, min_side: int
) -> None:
    image = decode(
        encoded(Image.new("RGB", (width, height)), "JPEG"), max_pixels=LIMIT, min_side=min_side
    )
    assert min(image.size) >= min(width, height, min_side)


@pytest.mark.parametrize("kind", LOSSLESS)
def test_other_formats_come_out_whole(kind: str) -> None:
    data = encoded(smooth(200, 160), kind)
    whole = decode(data, max_pixels=LIMIT)
    assert difference(decode(data, max_pixels=LIMIT, min_side=20), whole) == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_of_fewer_pixels_is_turned_upright_too(orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(patches(640, 320), "JPEG", exif=exif)
    reference = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    image = decode(data, max_pixels=LIMIT, min_side=80)
    assert image.size == ((160, 80) if orientation < 5 else (80, 160))
    error = np.asarray(image, np.int16) - np.asarray(reference.reduce(4), np.int16)
    assert np.abs(error).mean() < 1


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_jpeg_of_fewer_pixels_that_is_not_rgb_becomes_rgb(mode: str) -> None:
    data = encoded(smooth(640, 480).convert(mode), "JPEG", quality=95)
    image = decode(data, max_pixels=LIMIT, min_side=240)
    whole = decode(data, max_pixels=LIMIT)
    assert (image.mode, image.size) == ("RGB", (320, 240))
    assert difference(image, whole.reduce(2)) <= 6


def test_of_a_jpeg_with_several_frames_the_first_comes_out_with_fewer_pixels() -> None:
    data = encoded(smooth(640, 480), "MPO", save_all=True, append_images=[smooth(64, 48)])
    image = decode(data, max_pixels=LIMIT, min_side=240)
    assert image.size == (320, 240)
    assert difference(image, smooth(640, 480).reduce(2)) <= 12


def test_a_progressive_jpeg_comes_out_with_fewer_pixels() -> None:
    data = encoded(smooth(640, 480), "JPEG", progressive=True, quality=95)
    assert decode(data, max_pixels=LIMIT, min_side=240).size == (320, 240)


def test_the_decoded_pixels_of_a_jpeg_count() -> None:
    data = encoded(smooth(640, 480), "JPEG")
    assert decode(data, max_pixels=76_800, min_side=240).size == (320, 240)
    with pytest.raises(TooLarge, match="320x240 is over 76799 pixels"):
        decode(data, max_pixels=76_799, min_side=240)
    with pytest.raises(TooLarge, match="640x480 is over 76800 pixels"):
        decode(data, max_pixels=76_800)


def test_a_jpeg_header_may_have_six_times_the_pixels() -> None:
    data = encoded(smooth(640, 480), "JPEG")
    assert decode(data, max_pixels=51_200, min_side=50).size == (80, 60)
    with pytest.raises(TooLarge, match="640x480 is over 307194 pixels"):
        decode(data, max_pixels=51_199, min_side=50)


def test_a_jpeg_of_200_megapixels_is_decoded_small() -> None:
    data = encoded(Image.new("RGB", (16_320, 12_240), (90, 120, 60)), "JPEG")
    image = decode(data, max_pixels=LIMIT, min_side=512)
    assert image.size == (2040, 1530)
    assert max(abs(a - b) for a, b in zip(image.getpixel((9, 9)), (90, 120, 60), strict=True)) < 3


def test_all_pixels_of_a_progressive_jpeg_count_as_their_coefficients_are_kept() -> None:
    data = encoded(smooth(640, 480), "JPEG", progressive=True)
    assert decode(data, max_pixels=307_200, min_side=50).size == (80, 60)
    with pytest.raises(TooLarge, match="640x480 is over 307199 pixels"):
        decode(data, max_pixels=307_199, min_side=50)


def test_a_jpeg_that_is_cut_short_is_unreadable_with_fewer_pixels_too() -> None:
    data = encoded(smooth(640, 480), "JPEG")
    with pytest.raises(UnreadableImage):
        decode(data[: len(data) // 2], max_pixels=LIMIT, min_side=50)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF"])
def test_pixels_that_are_rgb_already_are_not_copied(kind: str) -> None:
    """What Pillow opened knows its format; a copy would not."""
    assert decode(encoded(patches(), kind), max_pixels=LIMIT).format == kind


# Sizes.


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF"])
def test_the_smallest_and_the_thinnest_images_are_images(kind: str, size: tuple[int, int]) -> None:
    assert decode(encoded(Image.new("RGB", size), kind), max_pixels=LIMIT).size == size


def test_a_image_of_just_the_most_pixels_is_taken_and_one_more_is_not() -> None:
    data = encoded(Image.new("RGB", (10, 10)), "PNG")
    assert decode(data, max_pixels=100).size == (10, 10)
    with pytest.raises(TooLarge, match="10x10 is over 99 pixels"):
        decode(data, max_pixels=99)


def claiming(kind: str, width: int, height: int) -> bytes:
    """A few bytes with the header of an image of that size."""
    data = bytearray(encoded(Image.new("RGB", (10, 10)), kind))
    if kind == "PNG":
        data[8:33] = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    if kind == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", height, width)
    if kind == "GIF":
        data[6:10] = struct.pack("<HH", width, height)
    if kind == "BMP":
        data[18:26] = struct.pack("<ii", width, height)
    if kind == "WEBP":
        lossless = b"VP8L" + struct.pack("<I", 10) + b"\x2f"
        size = struct.pack("<I", (width - 1) | (height - 1) << 14)
        data = bytearray(b"RIFF" + struct.pack("<I", 22) + b"WEBP" + lossless + size + bytes(5))
    if kind == "AVIF":
        at = data.index(b"ispe") + 8
        data[at : at + 8] = struct.pack(">II", width, height)
    if kind == "TIFF":
        tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 100, 277: 1, 279: 100}
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in tags)
        data = bytearray(b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(100))
    return bytes(data)


BEYOND_PILLOWS_LIMIT = (16_383, 16_383)  # 268 million pixels, and as large as WebP can say
WITHIN_PILLOWS_LIMIT = (12_000, 10_000)


@pytest.mark.parametrize("size", [WITHIN_PILLOWS_LIMIT, BEYOND_PILLOWS_LIMIT])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("action", ["error", "ignore"])
def test_a_header_over_the_limit_is_too_large(
    kind: str, size: tuple[int, int], action: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        with pytest.raises(TooLarge, match=f"over {LIMIT} pixels"):
            decode(claiming(kind, *size), max_pixels=LIMIT)


@pytest.mark.parametrize("kind", ["TIFF", "WEBP"])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_pillow_finds_too_large_is_so(kind: str) -> None:
    with pytest.raises(TooLarge, match="the image is over 178956970 pixels"):
        decode(claiming(kind, *BEYOND_PILLOWS_LIMIT), max_pixels=10**9)


def test_a_header_over_the_limit_takes_no_memory(tmp_path: Path) -> None:
    """In its own process, to measure the peak."""
    files = []
    for kind in KINDS:
        for size in (WITHIN_PILLOWS_LIMIT, BEYOND_PILLOWS_LIMIT):
            files.append(tmp_path / f"{kind}{size[0]}")
            files[-1].write_bytes(claiming(kind, *size))
    script = (
        "import pathlib, resource, sys\n"
        "from service.errors import TooLarge\n"
        "from service.imaging.image_decoder import decode\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before, refused = None, 0\n"
        "for path in sys.argv[1:]:\n"
        "    try: decode(pathlib.Path(path).read_bytes(), max_pixels=50_000_000)\n"
        "    except TooLarge: refused += 1\n"
        "    before = before or peak()\n"  # after the first, which imports Pillow's plugins
        "print(refused, peak() - before)\n"
    )
    root = ROOT
    command = [sys.executable, "-W", "ignore", "-c", script, *map(str, files)]
    done = subprocess.run(command, check=True, cwd=root, capture_output=True, text=True)  # noqa: S603 - our own script
    refused, grown = map(int, done.stdout.split())
    assert refused == len(files)
    assert grown < 32 * 1024  # KiB; one such image would take 360 MB


# Broken.


def test_a_photo_cut_short_anywhere_is_unreadable(beagle: bytes) -> None:
    for length in range(512, len(beagle), 512):
        error = outcome(beagle[:length], LIMIT)
        assert isinstance(error, UnreadableImage), f"{length} of {len(beagle)} bytes"
        assert str(error) == "the JPEG image is broken or cut short; send it whole"


@pytest.mark.parametrize("kind", KINDS)
def test_a_image_cut_short_anywhere_is_refused_or_an_image(kind: str) -> None:
    whole = valid(kind)
    for length in range(len(whole)):
        outcome(whole[:length])
    assert isinstance(outcome(whole[: len(whole) // 2]), UnreadableImage)


@cache
def valid(kind: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (12, 20, 3), np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    options = {"exif": exif} if kind in {"JPEG", "PNG", "WEBP", "TIFF"} else {}
    return encoded(Image.fromarray(noise), kind, **options)


@cache
def samples() -> tuple[bytes, ...]:
    """Valid files of every format, and of the modes and compressions with code of their own."""
    image = patches(20, 12)
    return (
        *(valid(kind) for kind in KINDS),
        encoded(image, "JPEG", progressive=True),
        encoded(image, "MPO", save_all=True, append_images=[image]),
        encoded(image.convert("RGBA"), "PNG"),
        encoded(image, "PNG", save_all=True, append_images=[image.rotate(180)]),
        encoded(image, "GIF", save_all=True, append_images=[image.rotate(180)]),
        encoded(image, "WEBP", save_all=True, append_images=[image.rotate(180)]),
        encoded(palette(), "PNG", transparency=0),
        encoded(palette(), "BMP"),
        encoded(image, "TIFF", compression="tiff_lzw"),
        encoded(image, "TIFF", compression="jpeg"),
        encoded(Image.fromarray(DEEP[None]), "PNG"),
        floats(0, 1, 2),
    )


Flips = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6)


@pytest.mark.parametrize("action", ["error", "ignore"])
@settings(deadline=None, max_examples=400)
@given(magic=st.sampled_from(MAGICS), rest=st.binary(max_size=300))
def test_random_bytes_after_a_magic_are_refused_or_an_image(
    action: str, magic: bytes, rest: bytes
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        outcome(magic + rest)


@pytest.mark.parametrize("action", ["error", "ignore"])
@settings(deadline=None, max_examples=600)
@given(which=st.integers(0, 17), flips=Flips, cut=st.integers(0, 40))
def test_changed_bytes_are_refused_or_an_image(
    action: str, which: int, flips: list[tuple[float, int]], cut: int
) -> None:
    """With warnings as errors, as in these tests, and without, as in production."""
    data = bytearray(samples()[which])
    for place, value in flips:
        data[int(place**2 * len(data))] = value  # squared: headers are where it hurts
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        outcome(bytes(data[: len(data) - cut]))


def test_a_tiff_that_pillow_would_warn_of_is_an_image() -> None:
    data = bytearray(encoded(patches(), "TIFF"))
    at = data.index(struct.pack("<HHI", 257, 4, 1))  # ImageLength: claim a value more
    data[at : at + 8] = struct.pack("<HHI", 257, 3, 2)
    assert difference(decode(bytes(data), max_pixels=LIMIT), patches()) == 0


def test_what_is_no_number_in_a_float_image_is_black_without_a_warning() -> None:
    """A signalling NaN, which no arithmetic gives, is in no hurry to be converted."""
    numbers = np.array([[1.0, 0.0, 0.5]], np.float32)
    numbers.view(np.uint32)[0, 2] = 0x7F800001
    file = io.BytesIO()
    Image.fromarray(numbers).save(file, "TIFF")
    assert np.asarray(decode(file.getvalue(), max_pixels=3))[0, :, 0].tolist() == [255, 0, 0]

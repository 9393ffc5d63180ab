"""Bytes to an upright RGB image: every format, every mode, everything that can be wrong."""

import io
import struct
import warnings
import zlib
from functools import cache

import mutations
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import KINDS, ORIENTATION, chunk, encoded, sized, tiff
from PIL import Image, ImageCms, ImageOps

from service.errors import ServiceError, TooLarge, UnreadableImage, UnsupportedType
from service.imaging.image_decoder import decode

LIMIT = 50_000_000
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
WHITE, BLACK, RED, GREEN = (255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 128, 0)


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


def png(
    pixels: npt.NDArray[np.generic], colour: int, *, depth: int, extra: bytes = b"",
    width: int | None = None,
) -> bytes:  # fmt: skip
    """Write a PNG of one row in a form that Pillow reads and does not write."""
    header = struct.pack(">IIBBBBB", width or len(pixels), 1, depth, colour, 0, 0, 0)
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


def two_colours() -> Image.Image:
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), GREEN)
    return image


def clear(*values: int) -> bytes:
    """The chunk of a PNG's transparent colour."""
    return chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))


DEEP = np.array([0, 1000, 32768, 65535], np.uint16)
BYTES = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
WORDS = np.array([[0x1234, 0x5678, 0x9ABC], [0x1234, 0x5678, 0x9A00], [0, 0, 0]], ">u2")
PNGS: dict[str, tuple[bytes, list[tuple[int, int, int]]]] = {
    "grey": (
        encoded(Image.frombytes("L", (3, 1), bytes([0, 100, 255])), "PNG"), grey(0, 100, 255),
    ),
    "one bit": (
        encoded(Image.frombytes("L", (2, 1), bytes([0, 255])).convert("1"), "PNG"),
        [BLACK, WHITE],
    ),
    "grey with alpha": (
        encoded(Image.frombytes("LA", (3, 1), bytes([0, 0, 0, 128, 0, 255])), "PNG"),
        grey(255, 127, 0),
    ),
    "a half transparent palette entry": (
        encoded(palette(), "PNG", transparency=bytes([255, 255, 128])),
        [RED, GREEN, (127, 127, 127)],
    ),
    "a transparent colour": (encoded(two_colours(), "PNG", transparency=RED), [WHITE, GREEN]),
    "16-bit RGB": (
        png(DEEP[[[0, 2, 3], [3, 1, 0]]].astype(">u2"), 2, depth=16), [(0, 128, 255), (255, 3, 0)],
    ),
    "16-bit grey with alpha": (
        png(np.array([[0, 0], [0, 65535], [32768, 65535]], ">u2"), 4, depth=16), grey(255, 0, 128),
    ),
    "a transparent 16-bit grey": (
        png(DEEP.astype(">u2"), 0, depth=16, extra=clear(1000)), grey(0, 255, 128, 255),
    ),
    # Pillow keeps the upper 8 bits, by which the second pixel is transparent, too.
    "a transparent 16-bit colour": (
        png(WORDS, 2, depth=16, extra=clear(*WORDS[0].tolist())),
        [WHITE, (0x12, 0x56, 0x9A), BLACK],
    ),
    "a transparent colour with too many bits": (
        png(BYTES, 2, depth=8, extra=clear(0xFF01, 2, 3)), [WHITE, (4, 5, 6)],
    ),
    **{
        f"a transparent colour of {size} bytes": (
            png(BYTES, 2, depth=8, extra=chunk(b"tRNS", bytes(size))), [(1, 2, 3), (4, 5, 6)],
        )
        for size in (0, 1, 7)
    },
}  # fmt: skip


@pytest.mark.parametrize(("data", "expected"), PNGS.values(), ids=PNGS)
def test_every_mode_of_png_becomes_rgb_over_white(
    data: bytes, expected: list[tuple[int, int, int]]
) -> None:
    assert row(data) == expected


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_alpha_goes_over_white(kind: str) -> None:
    image = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((0, 128, 255)):
        image.putpixel((x, 0), (255, 0, 0, alpha))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    assert row(encoded(image, kind, **options)) == [WHITE, (255, 127, 127), RED]


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
    frame = data.index(b",", 13 + (6 << (data[10] & 7)))
    data[frame + 1 : frame + 5] = struct.pack("<HH", left, top)
    return bytes(data)


@pytest.mark.parametrize("box", [(0, 0, 4, 4), (2, 1, 5, 8), (7, 7, 8, 8), (0, 0, 8, 8)])
def test_undrawn_pixels_of_a_gif_are_white(box: tuple[int, int, int, int]) -> None:
    expected = Image.new("RGB", (8, 8), WHITE)
    expected.paste(RED, box)
    assert difference(decode(small_gif(box), max_pixels=LIMIT), expected) == 0


def test_the_canvas_of_a_gif_grows_with_a_frame_that_is_larger() -> None:
    image = decode(small_gif((2, 0, 6, 4), canvas=(4, 4)), max_pixels=LIMIT)
    expected = Image.new("RGB", (6, 4), WHITE)
    expected.paste(RED, (2, 0, 6, 4))
    assert difference(image, expected) == 0


def test_undrawn_pixels_of_an_animated_webp_are_white() -> None:
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


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_and_not_clipped(kind: str) -> None:
    assert row(encoded(Image.fromarray(DEEP[None]), kind)) == grey(0, 4, 128, 255)


@pytest.mark.parametrize(("depth", "white"), [(1, 1), (2, 3), (4, 15), (8, 255), (16, 65535)])
@pytest.mark.parametrize("is_black", [True, False])
def test_a_transparent_grey_of_any_depth_becomes_white(
    depth: int, white: int, *, is_black: bool
) -> None:
    """Black, the middle or 0, and white; of these one is transparent, the others stay."""
    values = [0, white // 2, white, 0]
    bits = "".join(f"{value:0{depth}b}" for value in values)
    size = -(-len(bits) // 8)
    packed = int(bits.ljust(size * 8, "0"), 2).to_bytes(size, "big")
    transparent = 0 if is_black else white // 2
    pixels = np.frombuffer(packed, np.uint8)
    data = png(pixels, 0, depth=depth, extra=clear(transparent), width=len(values))
    shown = [255 if value == transparent else round(value / white * 255) for value in values]
    assert row(data) == grey(*shown)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([-(2**31), 0, 2**30, 2**31 - 1], grey(0, 128, 191, 255)), ([5, 5], grey(128, 128))],
)
def test_32_bit_integers_are_scaled_by_their_range(
    values: list[int], expected: list[tuple[int, int, int]]
) -> None:
    assert row(encoded(Image.fromarray(np.array([values], np.int32)), "TIFF")) == expected


def test_32_bit_integers_that_would_all_be_one_grey_are_refused() -> None:
    image = Image.fromarray(np.array([[0, 32768, 65535]], np.int32))
    with pytest.raises(UnsupportedType, match=r"with values from 0 to 65535 only\)"):
        decode(encoded(image, "TIFF"), max_pixels=LIMIT)


NAN, INF = float("nan"), float("inf")


def floats(*values: float) -> bytes:
    return encoded(Image.fromarray(np.array([values], np.float32)), "TIFF")


@pytest.mark.parametrize(
    "values",
    [
        *((0, white / 2, white) for white in (1.0, 255.0, 1e-3, 3e38)),
        (-1, 0, 1),
        *((0, 0.5, 1, odd) for odd in (NAN, INF, -INF)),
    ],
)
def test_finite_floats_are_scaled_from_the_darkest_to_the_brightest(
    values: tuple[float, ...],
) -> None:
    assert row(floats(*values))[:3] == grey(0, 128, 255)


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


# Sizes.


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF"])
def test_the_smallest_and_the_thinnest_images_are_images(kind: str, size: tuple[int, int]) -> None:
    assert decode(encoded(Image.new("RGB", size), kind), max_pixels=LIMIT).size == size


def test_an_image_with_the_maximum_of_pixels_is_accepted_and_with_more_is_not() -> None:
    data = encoded(Image.new("RGB", (10, 10)), "PNG")
    assert decode(data, max_pixels=100).size == (10, 10)
    with pytest.raises(TooLarge, match="10x10 is over 99 pixels"):
        decode(data, max_pixels=99)


def claiming(kind: str, width: int, height: int) -> bytes:
    """A few bytes with the header of an image of that size."""
    if kind == "TIFF":
        return tiff({256: width, 257: height, 273: 200, 279: 100}, bytes(100))
    data = encoded(Image.new("RGB", (10, 10)), kind)
    if kind == "AVIF":
        return sized(data, width, height)
    return mutations.claiming(data, width, height)


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
def test_an_image_over_pillows_own_limit_is_too_large(kind: str) -> None:
    with pytest.raises(TooLarge, match="the image is over 178956970 pixels"):
        decode(claiming(kind, *BEYOND_PILLOWS_LIMIT), max_pixels=10**9)


# Broken.


def test_a_photo_cut_short_anywhere_is_unreadable(beagle: bytes) -> None:
    for length in range(512, len(beagle), 512):
        error = outcome(beagle[:length], LIMIT)
        assert isinstance(error, UnreadableImage), f"{length} of {len(beagle)} bytes"
        assert str(error) == "the JPEG image is broken or cut short; send it whole"


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_cut_short_anywhere_is_refused_or_an_image(kind: str) -> None:
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


@pytest.mark.parametrize("action", ["error", "ignore"])
@settings(deadline=None, max_examples=400)
@given(magic=st.sampled_from(MAGICS), rest=st.binary(max_size=300))
def test_random_bytes_after_a_magic_are_refused_or_an_image(
    action: str, magic: bytes, rest: bytes
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        outcome(magic + rest)


def test_a_tiff_that_pillow_would_warn_of_is_an_image() -> None:
    data = bytearray(encoded(patches(), "TIFF"))
    at = data.index(struct.pack("<HHI", 257, 4, 1))  # ImageLength: claim a value more
    data[at : at + 8] = struct.pack("<HHI", 257, 3, 2)
    assert difference(decode(bytes(data), max_pixels=LIMIT), patches()) == 0


def test_a_signalling_nan_in_a_float_image_is_black_without_a_warning() -> None:
    numbers = np.array([[1.0, 0.0, 0.5]], np.float32)
    numbers.view(np.uint32)[0, 2] = 0x7F800001
    assert row(encoded(Image.fromarray(numbers), "TIFF")) == grey(255, 0, 0)

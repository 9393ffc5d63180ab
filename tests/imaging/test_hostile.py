"""Images that are made to hurt: no answer but an image or a refusal, at a bounded cost."""

import io
import json
import struct
import subprocess
import sys
import time
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bombs import BOMBS, gif, many_chunks, overlapping_strips, rationals, scans
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import (
    KINDS,
    MUTATIONS,
    ORIENTATION,
    chunk,
    encoded,
    good,
    mutated,
    segment,
    segments,
    tiff,
)
from PIL import Image, ImageOps

from service.errors import ServiceError, TooLarge, UnreadableImage
from service.imaging import sanitizer
from service.imaging.image_decoder import decode
from service.imaging.metered_file import MeteredFile
from service.imaging.pillow_decoder import MAX_PASSES

LIMIT = 50_000_000
MIB = 1 << 20


def outcome(data: bytes, max_pixels: int = LIMIT) -> Image.Image | ServiceError:
    """Decode; any other error is a bug."""
    try:
        image = decode(data, max_pixels=max_pixels, seconds=5.0)
    except ServiceError as error:
        return error
    assert image.mode == "RGB"
    assert 0 < image.width * image.height <= max_pixels
    return image


# Bombs.

MEASURE = """
import json, sys, time, warnings
sys.path[:0] = sys.argv[1:]
from bombs import BOMBS
from mutations import good
from service.errors import ServiceError
from service.imaging.image_decoder import decode

def memory(line):
    found = [row for row in open("/proc/self/status") if row.startswith(line)]
    return int(found[0].split()[1]) * 1024

warnings.simplefilter("ignore")
for data in good():  # so that all is imported
    decode(data, max_pixels=10**6)
for name, make in BOMBS.items():
    data = make()
    open("/proc/self/clear_refs", "w").write("5")  # forget the peak
    before, started, pixels = memory("VmRSS"), time.thread_time(), 0
    try:
        image = decode(data, max_pixels=50_000_000, seconds=1.0)
        pixels, said = image.width * image.height, ""
        del image
    except ServiceError as error:
        said = type(error).__name__ + ": " + str(error)
    seconds, grown = time.thread_time() - started, memory("VmHWM") - before
    print(json.dumps([name, said, pixels, len(data), seconds, grown]), flush=True)
"""


@pytest.fixture(scope="module")
def measured() -> Mapping[str, Any]:
    """Every bomb's outcome, in its own process to measure the memory."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("only Linux tells a process's peak of memory anew")
    command = [sys.executable, "-c", MEASURE, str(ROOT / "tests"), str(ROOT)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)  # noqa: S603 - our own script
    return {name: rest for name, *rest in map(json.loads, done.stdout.splitlines())}


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_costs_no_more_than_its_pixels_and_bytes(
    name: str, measured: Mapping[str, Any]
) -> None:
    _, pixels, nbytes, seconds, grown = measured[name]
    assert seconds < 5  # a second, plus the time between two reads
    assert grown < 24 * pixels + 4 * nbytes + 32 * MIB


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("JPEG of 100,000 scans", "TooLarge: 1000x1000 in 100010 passes is over 16 times"),
        ("JPEG of 16 scans", ""),
        ("JPEG of 60 large EXIF segments", ""),
        ("JPEG of very many EXIF segments", "Unreadable"),
        ("PNG of 1000 colour profiles", ""),
        ("PNG with fractions for an orientation", ""),
        ("WebP that claims 2^24 squared", "TooLarge: 16777216x16777216 is over"),
        ("GIF of a long comment", "Unreadable"),
        (
            "BMP of very many runs",  # on a fast machine, fewer than take a second
            ("TooLarge: the image takes over 1 seconds to decode", "UnreadableImage: the BMP"),
        ),
        ("TIFF of 4000 tags for the same bytes", "Unreadable"),
        ("BigTIFF of 4000 tags for the same bytes", "Unreadable"),
        ("TIFF of 100 strips in the same place", "Unreadable"),
        ("TIFF with a tile of 40000 x 40000", "TooLarge: 40000x40000 is over"),
        ("TIFF with a JPEG of 1000 scans", "TooLarge: 1000x1000 in 1006 passes"),
        ("TIFF with fractions in its EXIF", ""),
        ("PNG with a profile of a gigabyte", ""),
        ("PNG of 16 bits with a transparent colour", ""),
        ("JPEG without an end", ""),
        ("JPEG of scans without an end", ""),
        ("JPEG of 300 megapixels", "TooLarge: 20000x15000 is over 50000000 pixels"),
        ("TIFF of colours apart", ""),
        ("AVIF of one colour", ""),
        ("AVIF that claims 16000 x 16000", "TooLarge: 16000x16000 is over"),
        ("AVIF with fractions for an orientation", ""),
        ("AVIF of 30 frames", ""),
    ],
)
def test_a_bombs_error_names_the_reason(
    name: str, said: str | tuple[str, str], measured: Mapping[str, Any]
) -> None:
    assert measured[name][0].startswith(said)
    assert bool(measured[name][0]) == bool(said)


# Removed and kept metadata.


def test_the_scans_of_a_progressive_jpeg_count_against_the_pixels() -> None:
    data = encoded(Image.new("RGB", (1000, 1000)), "JPEG", progressive=True)
    assert decode(data, max_pixels=10**6).size == (1000, 1000)  # whatever its size
    assert decode(scans(100, 100, MAX_PASSES - 10), max_pixels=10_000).size == (100, 100)
    with pytest.raises(TooLarge, match="100x100 in 17 passes is over 16 times 10000 pixels"):
        decode(scans(100, 100, MAX_PASSES - 9), max_pixels=10_000)
    assert decode(scans(100, 100, MAX_PASSES - 9), max_pixels=10_625).size == (100, 100)


@pytest.mark.parametrize(
    "data",
    [
        *(segments(good()[6], segment(marker, b"\xff\xda" * 100)) for marker in (0xE1, 0xFE)),
        good()[6] + b"\0\2" + b"\xff\xda\0\2" * 100,  # an invalid table, ignored after the end
        segments(good()[6], segment(0xE1, b"Exif\0\0" + good()[6])),  # a preview
        segments(good()[6], segment(0xE1, b"Exif\0\0" + rationals(8000))),  # as an orientation
    ],
)
def test_segments_and_bytes_after_the_end_of_a_jpeg_do_not_count(data: bytes) -> None:
    assert decode(data, max_pixels=240).size == (20, 12)


def test_a_jpeg_keeps_only_the_segments_that_change_it() -> None:
    whole = good()[0]
    plain = sanitizer.sanitize(whole, "JPEG").data
    notes = b"".join(segment(marker, b"FPXR\0" + bytes(99)) for marker in (0xE2, 0xED, 0xFE))
    assert sanitizer.sanitize(segments(whole, notes), "JPEG").data == plain
    again = segment(0xE1, b"Exif\0\0" + b"II*\0" + bytes(9))
    kept = sanitizer.sanitize(whole.replace(b"\xff\xdb", again + b"\xff\xdb", 1), "JPEG").data
    assert kept == plain


@pytest.mark.parametrize("padding", [b"\xff", b"\xff" * 1000, b"\0", b"\xff\0"])
def test_padding_between_segments_is_no_reason_to_refuse(padding: bytes) -> None:
    data = good()[6]
    start = data.index(b"\xff\xdb")
    padded = decode(data[:start] + padding + data[start:], max_pixels=LIMIT)
    assert (np.asarray(padded) == np.asarray(decode(data, max_pixels=LIMIT))).all()


def test_a_png_loses_only_its_profile_and_texts() -> None:
    data = good()[9]
    notes = chunk(b"iCCP", b"a\0\0" + zlib.compress(b"profile")) + chunk(b"tEXt", b"a\0b")
    noted = data[:33] + notes + data[33:-12] + notes + data[-12:]
    assert sanitizer.sanitize(noted, "PNG").data == data
    assert sanitizer.sanitize(data + b"behind the end", "PNG").data == data


def test_exif_in_a_png_text_rotates() -> None:
    turned = struct.pack("<4sIHHHIII", b"II*\0", 8, 1, ORIENTATION, 3, 1, 6, 0)
    note = chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 26\n" + turned.hex().encode())
    data = encoded(Image.new("RGB", (20, 12)), "PNG")
    for notes in (note, note * 2):
        assert decode(data[:33] + notes + data[33:], max_pixels=LIMIT).size == (12, 20)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize("has_exif", [False, True])
def test_exif_rotates_and_xmp_does_not(kind: str, *, has_exif: bool) -> None:
    """Not even where the EXIF leaves it open."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><y tiff:Orientation="6"/></x:xmpmeta>'
    options = {"tiffinfo": {700: xmp}} if kind == "TIFF" else {"xmp": xmp}
    if has_exif and kind != "TIFF":
        exif = Image.Exif()
        exif[0x010E] = "an image"
        options["exif"] = exif
    data = encoded(Image.new("RGB", (20, 12)), kind, **options)
    if kind == "PNG":
        note = chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>')
        data = data[:33] + note + data[33:]
    reference = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert reference.size == (12, 20)  # as Pillow has it
    assert decode(data, max_pixels=LIMIT).size == (20, 12)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_tiff_is_turned_however_it_is_compressed(
    orientation: int, compression: str
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (12, 20, 3), np.uint8)
    tags = {ORIENTATION: orientation}
    data = encoded(Image.fromarray(noise), "TIFF", compression=compression, tiffinfo=tags)
    reference = Image.open(io.BytesIO(data))
    reference.load()  # which turns it
    assert (np.asarray(decode(data, max_pixels=LIMIT)) == np.asarray(reference)).all()


def test_a_gif_loses_its_comments_and_keeps_its_transparency() -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    data = encoded(image, "GIF", transparency=0, comment=b"a comment " * 100)
    assert b"comment" not in sanitizer.sanitize(data, "GIF").data
    assert decode(data, max_pixels=LIMIT).getpixel((0, 0)) == (255, 255, 255)


MALFORMED = {
    "a GIF without a frame": gif((1, 1), (0, 0, 1, 1)).partition(b",")[0],
    "a GIF that ends without a frame": gif((1, 1), (0, 0, 1, 1)).partition(b",")[0] + b";",
    "a GIF in a longer comment than it has bytes": gif((1, 1), (0, 0, 1, 1), b"!\xfe\xff"),
    "a PNG of too many chunks": many_chunks(chunk(b"tEXt", b""), 65_537),
    "a JPEG of too many segments": segments(good()[0], segment(0xFE, b"") * 4097),
    "a GIF of too many blocks": gif((1, 1), (0, 0, 1, 1), b"!\xfe\1a\0" * 140_000),
    "a TIFF of too many tags": tiff(
        {273: 200, 279: 100, **dict.fromkeys(range(30_000, 34_090), 1)}, bytes(1000)
    ),
    "a TIFF of too many values": tiff({273: 200, 279: 100, 320: (3, 262_145, 0)}, bytes(600_000)),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_or_fragmented_file_is_unreadable(data: bytes) -> None:
    assert isinstance(outcome(data), UnreadableImage)


def test_too_many_values_of_an_unused_tag_are_ignored() -> None:
    unused = tiff({273: 200, 279: 100, 40_000: (3, 262_145, 0)}, bytes(600_000))
    assert outcome(unused).size == (10, 10)


def test_the_exif_of_a_webp_is_ignored_where_it_is_too_long() -> None:
    for count, size in ((10, (12, 20)), (10_000, (20, 12))):
        exif = Image.Exif()
        exif[ORIENTATION] = 6
        exif[0x010E] = "a" * 8 * count
        data = encoded(Image.new("RGB", (20, 12)), "WEBP", exif=exif)
        assert decode(data, max_pixels=LIMIT).size == size


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exact": True, "icc_profile": b"a"}])
def test_a_webp_is_too_large_before_its_canvas_is_made(options: dict[str, Any]) -> None:
    data = encoded(Image.new("RGBA", (30, 20)), "WEBP", **options)
    assert sanitizer.sanitize(data, "WEBP").buffer == (30, 20)
    with pytest.raises(TooLarge, match="30x20 is over 599 pixels"):
        decode(data, max_pixels=599)


# A TIFF's directory.

DATA = bytes(1000)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize(
    "tags",
    [
        {273: 200, 278: 10, 279: 100},
        {273: 200, 278: 10, 279: 100, 40_000: (12, 2, 0)},  # unused doubles
        {273: 200, 278: 10, 279: 100, 40_001: (99, 2, 0)},  # an unknown type
        {273: 200},
        {322: 16, 323: 16, 324: 200, 325: 256},
    ],
)
def test_an_odd_tiff_is_an_image(tags: dict[int, Any], *, big: bool) -> None:
    assert decode(tiff(tags, DATA, big=big), max_pixels=LIMIT).size == (10, 10)


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({347: (7, 5000, 0)}, "more than the file"),
        ({320: (3, 400, 0), 338: (4, 200, 0)}, "more than the file"),
        ({256: 0}, "no pixels"),
        ({259: 1, 284: 2, 279: 10_000}, "longer than the file"),
        ({259: 1, 266: 2, 279: (11, 1, 0)}, "longer than the file"),  # but in fractions
        ({259: 8, 279: 10_000}, "longer than the file"),
        ({259: 8, 273: (4, 2, 0), 279: (11, 2, 0)}, "does not say how long"),  # but in fractions
        ({322: (3, 3, 2000), 323: 1}, "unpack_from"),  # values past the end
    ],
)
def test_a_tiff_that_contradicts_itself_is_unreadable(tags: dict[int, Any], said: str) -> None:
    data = tiff({273: 200, 278: 10, 279: 100, **tags}, DATA)
    with pytest.raises((ValueError, struct.error), match=said):
        sanitizer.sanitize(data, "TIFF")
    assert isinstance(outcome(data), UnreadableImage)


@pytest.mark.parametrize("compression", [1, 8])
def test_of_two_tags_of_one_number_the_first_counts(compression: int) -> None:
    """By Pillow alone it would be the last, by libtiff the first."""
    pixels = bytes(range(100))
    content = zlib.compress(pixels) if compression == 8 else pixels
    start = 8 + 2 + 12 * 10 + 4
    twice = {256: 10, 259: compression, 273: start, 278: 10, 279: len(content)}
    data = tiff({**twice, 255: 5}, content)
    start = data.index(struct.pack("<HH", 255, 4))
    again = struct.pack("<HHII", 256, 4, 1, 5)
    moved = data[:start] + data[start + 12 : start + 24] + again + data[start + 24 :]
    assert decode(moved, max_pixels=LIMIT).size == (10, 10)
    assert np.asarray(decode(moved, max_pixels=LIMIT))[..., 0].tobytes() == pixels


@pytest.mark.parametrize("tag", [258, 262, 277, 282, 305, 330, 34_665, 40_000])
def test_a_tag_without_a_value_is_ignored(tag: int) -> None:
    tags = {tag: (3, 0, 0), 273: 200, 279: 100}
    data = tiff(tags, DATA)
    if tag in {258, 262, 277}:  # of one bit, and white is zero
        assert outcome(data).size == (10, 10)
    else:
        assert (np.asarray(decode(data, max_pixels=LIMIT)) == 0).all()


def test_tiles_count_in_full() -> None:
    tags = {322: 1000, 323: 1000, 324: 200, 325: 100}
    with pytest.raises(TooLarge, match="1000x1000 is over 999999 pixels"):
        decode(tiff(tags, DATA), max_pixels=999_999)
    wide = {256: 10, 257: 1000, 322: 10_000, 323: 16, 324: 200, 325: 100}
    with pytest.raises(TooLarge, match="10x1000 in 1008 passes is over 16 times 200000 pixels"):
        decode(tiff(wide, DATA), max_pixels=200_000)


def test_the_scans_of_a_jpeg_in_a_tiff_count() -> None:
    inner = scans(64, 64, 100)
    for compression in (6, 7):
        tags = {256: 64, 257: 64, 259: compression, 273: 8 + 2 + 12 * 9 + 4, 278: 64}
        with pytest.raises(TooLarge, match="64x64 in 110 passes"):
            decode(tiff({**tags, 279: len(inner)}, inner), max_pixels=64 * 64)


def test_the_same_strip_twice_is_no_bomb() -> None:
    """The file's length counts twice, for writers that round up."""
    assert sanitizer.sanitize(overlapping_strips(1), "TIFF").passes == 1
    with pytest.raises(ValueError, match="longer than the file"):
        sanitizer.sanitize(overlapping_strips(3), "TIFF")


# Reading.


def test_a_file_may_be_read_four_times() -> None:
    file = MeteredFile(bytes(MIB), 10.0)
    for _ in range(4):
        file.seek(0)
        assert len(file.read()) == MIB
    file.seek(0)
    assert len(file.read(65_536)) == 65_536
    with pytest.raises(TooLarge, match="reads it over 4 times"):
        file.read(1)


def test_reading_ends_with_the_time_that_this_thread_computed() -> None:
    file = MeteredFile(bytes(MIB), 0.05)
    time.sleep(0.1)  # waiting is not computing
    assert len(file.read(4096)) == 4096
    compute(0.06)
    with pytest.raises(TooLarge, match=r"takes over 0\.05 seconds to decode"):
        file.read(4096)


def test_many_small_reads_end_too() -> None:
    file = MeteredFile(bytes(MIB), 0.0)
    compute(0.001)
    assert len([file.read(1) for _ in range(255)]) == 255
    with pytest.raises(TooLarge, match="takes over 0 seconds to decode"):
        file.read(1)


def compute(seconds: float) -> None:
    """Keep this thread busy."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_is_read_through_the_meter(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    with pytest.raises(TooLarge, match="takes over 0 seconds to decode"):
        decode(data, max_pixels=LIMIT, seconds=0.0)


def test_only_the_decoders_of_the_seven_formats_are_there(tmp_path: Path) -> None:
    """`Image.open` would import all that Pillow has."""
    for kind in KINDS:
        (tmp_path / kind).write_bytes(encoded(Image.new("RGB", (10, 10)), kind))
    script = (
        "import pathlib, sys\n"
        "from service.imaging.image_decoder import decode\n"
        "for path in pathlib.Path(sys.argv[1]).iterdir():\n"
        "    decode(path.read_bytes(), max_pixels=1000)\n"
        "from PIL import Image\n"
        "print(*Image.OPEN)\n"
        "print(*[name[4:-11] for name in sys.modules if name.endswith('ImagePlugin')])\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(  # noqa: S603 - our own script
        command, check=True, cwd=ROOT, capture_output=True, text=True
    )
    formats, plugins = map(str.split, done.stdout.splitlines())
    assert set(formats) == {*KINDS, "DIB"}  # DIB is BMP's
    assert set(plugins) == {"Avif", "Bmp", "Gif", "Jpeg", "Png", "Tiff", "WebP"}


# Any change, any size.


@pytest.mark.filterwarnings("ignore")  # as in production
def test_thousands_of_changed_images_are_refused_or_images() -> None:
    images = good()
    for seed in range(4000):
        data = mutated(seed, images)
        started = time.thread_time()
        outcome(data, 1_000_000)
        assert time.thread_time() - started < 5, f"mutated({seed}, good())"


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_each_change_alone_is_refused_or_an_image(mutation: Any) -> None:
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(st.sampled_from(good()), st.randoms(use_true_random=False))
    def check(data: bytes, chance: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome(mutation(data, chance, good()), 1_000_000)

    check()


MODES = {
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("1", "L", "P", "RGB"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"),
    "AVIF": ("L", "RGB", "RGBA"),
}


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data(), st.sampled_from(KINDS), st.integers(1, 200), st.integers(1, 200))
def test_any_real_image_has_its_size_upright(
    draw: st.DataObject, kind: str, width: int, height: int
) -> None:
    mode = draw.draw(st.sampled_from(MODES[kind]))
    image = Image.new(mode, (width, height))
    options: dict[str, object] = {}
    orientation = 1
    if kind not in {"GIF", "BMP"}:
        orientation = draw.draw(st.integers(1, 8))
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        options["exif"] = exif
    data = encoded(image, kind, **options)
    upright = (width, height) if orientation < 5 else (height, width)
    assert decode(data, max_pixels=width * height).size == upright

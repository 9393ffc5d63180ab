"""A JPEG's end, and its variants."""

import io
import re

import numpy as np
import pytest
from mutations import encoded, segment, segments
from PIL import Image

from service.errors import TooLarge, UnreadableImage, UnsupportedType
from service.imaging import jpeg_segments
from service.imaging.image_decoder import decode

LIMIT = 10_000_000
END = b"\xff\xd9"
OPTIONS = [
    {},
    {"progressive": True},
    {"quality": 95, "subsampling": 0},
    {"restart_marker_rows": 1},
    {"restart_marker_blocks": 3},
    {"progressive": True, "restart_marker_blocks": 5},
]


def photo(width: int = 240, height: int = 160, mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(decode(data, max_pixels=LIMIT), np.int16)


@pytest.mark.parametrize("missing", [1, 2])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_whole_jpeg_without_its_end_marker_is_decoded_the_same(
    options: dict[str, object], mode: str, missing: int
) -> None:
    data = encoded(photo(mode=mode), "JPEG", **options)
    assert (pixels(data[:-missing]) == pixels(data)).all()


@pytest.mark.parametrize("behind", [b"\0" * 100, b"\xff" * 9, b"a comment"])
def test_bytes_in_place_of_the_end_marker_are_skipped(behind: bytes) -> None:
    data = encoded(photo(), "JPEG")
    assert (pixels(data[:-2] + behind) == pixels(data)).all()


@pytest.mark.parametrize("options", OPTIONS)
def test_a_jpeg_that_is_cut_short_is_unreadable_wherever_it_is_cut(
    options: dict[str, object],
) -> None:
    data = encoded(photo(), "JPEG", **options)
    for missing in (100, 150, 200, 400, 1000, len(data) // 3, len(data) // 2, 2 * len(data) // 3):
        with pytest.raises(UnreadableImage):
            decode(data[:-missing], max_pixels=LIMIT)


def test_of_a_large_jpeg_a_few_bytes_may_be_missing_at_most() -> None:
    """Up to 16 bytes are completed, which affect a few pixels in a corner."""
    data = encoded(photo(), "JPEG", quality=95)
    taken = 0
    for missing in range(1, 200):
        try:
            shown = pixels(data[:-missing])
        except UnreadableImage:
            continue
        taken = missing
        changed = (np.abs(shown - pixels(data)).max(2) > 8).mean()
        assert changed < 0.01
    assert 2 <= taken < 100


def test_a_progressive_jpeg_without_its_last_scan_is_unreadable() -> None:
    """Every scan is complete, but later ones are missing."""
    data = encoded(photo(), "JPEG", progressive=True)
    for scan in scans(data)[1:]:
        has_table = data[scan - 100 : scan].count(b"\xff\xc4")
        start = data.rindex(b"\xff\xc4", 0, scan) if has_table else scan
        with pytest.raises(UnreadableImage):
            decode(data[:start], max_pixels=LIMIT)


def scans(data: bytes) -> list[int]:
    return [match.start() for match in re.finditer(rb"\xff\xda", data)]


def test_a_jpeg_that_ends_within_the_header_of_a_scan_or_frame_is_unreadable() -> None:
    data = encoded(photo(), "JPEG")
    scan = scans(data)[0]
    headers = [data[:length] for length in range(scan, scan + 14)]
    for cut in (*headers, b"\xff\xd8" + b"\xff\xc0\0\4\x08\0"):
        with pytest.raises(UnreadableImage):
            decode(cut, max_pixels=LIMIT)


def test_without_its_end_marker_all_pixels_of_a_jpeg_count() -> None:
    """The check for completeness decodes it three times at full size."""
    data = encoded(photo(), "JPEG")
    assert decode(data, max_pixels=6400, min_side=20).size == (30, 20)
    with pytest.raises(TooLarge, match="240x160 is over 38399 pixels"):
        decode(data[:-2], max_pixels=38_399, min_side=20)
    assert decode(data[:-2], max_pixels=38_400, min_side=20).size == (30, 20)
    assert jpeg_segments.sanitize(data[:-2]).passes == 3
    progressive = encoded(photo(), "JPEG", progressive=True)
    assert (
        jpeg_segments.sanitize(progressive[:-2]).passes
        == 3 * jpeg_segments.sanitize(progressive).passes
    )
    with pytest.raises(TooLarge, match="30 passes"):
        decode(progressive[:-2], max_pixels=38_400)
    assert decode(progressive[:-2], max_pixels=80_000).size == (240, 160)


def test_a_jpeg_of_very_many_scans_needs_its_end_marker() -> None:
    data = encoded(photo(16, 16, "L"), "JPEG", progressive=True)
    many = data[:-2] + segment(0xDA, b"\1\1\0\1\5\2") * 101
    assert jpeg_segments.sanitize(many).tail is None
    with pytest.raises(UnreadableImage):
        decode(many, max_pixels=LIMIT)


def framed(marker: int, *, bits: int = 8, components: int = 3, height: int | None = None) -> bytes:
    """Make a JPEG with the frame header of another variant."""
    data = bytearray(encoded(photo(16, 16), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 1], data[at + 4], data[at + 9] = marker, bits, components
    if height is not None:
        data[at + 5 : at + 7] = height.to_bytes(2, "big")
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (framed(0xC1, bits=12), "12-bit"),
        (framed(0xC3, bits=16), "lossless, 16-bit"),
        (framed(0xC5), "hierarchical"),
        (framed(0xC7), "hierarchical"),
        (framed(0xCB), "lossless, with arithmetic coding"),
        (framed(0xF7), "JPEG-LS"),
        (framed(0xC0, components=2), "2 colour components"),
        (framed(0xC0, height=0), "with the height at the end"),
    ],
)
def test_a_jpeg_of_a_kind_that_is_not_read_is_not_called_broken(data: bytes, said: str) -> None:
    with pytest.raises(UnsupportedType) as caught:
        decode(data, max_pixels=LIMIT)
    assert str(caught.value) == (
        f"a kind of JPEG this service does not read ({said}); save it as an ordinary JPEG"
    )


def test_a_lossless_jpeg_that_its_decoder_fails_at_is_named() -> None:
    with pytest.raises(UnsupportedType, match=r"\(lossless\)"):
        decode(framed(0xC3), max_pixels=LIMIT)


def test_of_a_lossless_jpeg_no_pixels_are_left_out() -> None:
    """Its decoder knows no smaller size, and would fail at one."""
    data = bytearray(lossless())
    assert decode(bytes(data), max_pixels=LIMIT, min_side=8).size == (64, 64)


def lossless() -> bytes:
    """Write a JPEG without loss: grey of 64 x 64, each row and pixel as the one before."""
    frame = segment(0xC3, b"\x08\0\x40\0\x40\1\1\x11\0")
    lengths = b"\1" + bytes(15)  # one code, of one bit: a difference of 0
    table = segment(0xC4, b"\0" + lengths + b"\0")
    scan = segment(0xDA, b"\1\1\0\1\0\0")
    return b"\xff\xd8" + frame + table + scan + bytes(64 * 64 // 8) + END


def test_only_one_exif_is_kept() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photo(20, 10), "JPEG", exif=exif)
    again = exif.tobytes().replace(b"\6\0", b"\3\0")
    twice = data[: data.index(b"\xff\xdb")] + segment(0xE1, again) + data[data.index(b"\xff\xdb") :]
    assert decode(twice, max_pixels=LIMIT).size == (10, 20)
    assert Image.open(io.BytesIO(jpeg_segments.sanitize(twice).data)).getexif()[0x0112] == 6


def test_a_profile_in_several_segments_is_put_together_in_their_order() -> None:
    parts = [b"ICC_PROFILE\0" + bytes([number, 3]) + bytes([number]) * 5 for number in (1, 2, 3)]
    data = encoded(photo(16, 16), "JPEG")
    given = segments(data, b"".join(segment(0xE2, parts[at]) for at in (2, 0, 1)))
    assert jpeg_segments.sanitize(given).profile == b"\1" * 5 + b"\2" * 5 + b"\3" * 5
    assert jpeg_segments.sanitize(given).data == jpeg_segments.sanitize(data).data
    lacking = segments(data, segment(0xE2, parts[0]) + segment(0xE2, parts[2]))
    assert jpeg_segments.sanitize(lacking).profile == b""

"""AVIF: decoding, and limits on the sizes in its stream."""

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import box, difference, encoded, photo, sized
from PIL import Image

from service.errors import TooLarge, UnreadableImage, UnsupportedType
from service.imaging import av1, avif
from service.imaging.image_decoder import decode
from service.imaging.media_boxes import Box, boxes, items

LIMIT = 1_000_000


@pytest.mark.parametrize("subsampling", ["4:0:0", "4:2:0", "4:2:2", "4:4:4"])
def test_all_samplings_are_decoded(subsampling: str) -> None:
    image = photo().convert("L") if subsampling == "4:0:0" else photo()
    data = encoded(image, "AVIF", quality=95, subsampling=subsampling)
    assert difference(decode(data, max_pixels=LIMIT), image.convert("RGB")) < 4


def test_alpha_goes_over_white() -> None:
    image = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    assert decode(encoded(image, "AVIF"), max_pixels=LIMIT).getpixel((5, 5)) == (255, 255, 255)


TURNS = {
    3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_270, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_item_properties_rotate(orientation: int) -> None:
    """Pillow writes an orientation as item properties; the EXIF's own is ignored."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = decode(encoded(photo(), "AVIF", exif=exif, quality=95), max_pixels=LIMIT)
    stored = Image.open(io.BytesIO(encoded(photo(), "AVIF", quality=95)))
    if orientation in TURNS:
        assert difference(upright, stored.transpose(TURNS[orientation])) < 1
    assert upright.size == ((60, 40) if orientation < 5 else (40, 60))


def test_an_exif_in_it_is_hidden_from_the_decoder() -> None:
    exif = Image.Exif()
    exif[0x010E] = "a" * 1000
    data = encoded(photo(), "AVIF", exif=exif, xmp=b"<x/>")
    assert b"Exif" in data
    kept = Image.open(io.BytesIO(avif.sanitize(data).data))
    assert not {"exif", "xmp"} & kept.info.keys()
    assert len(avif.sanitize(data).data) == len(data)


def test_of_an_animation_the_still_image_is_shown() -> None:
    frames = [photo(), Image.new("RGB", (60, 40)), Image.new("RGB", (60, 40))]
    data = encoded(frames[0], "AVIF", save_all=True, append_images=frames[1:], quality=95)
    assert b"avis" in data
    assert difference(decode(data, max_pixels=LIMIT), photo()) < 3
    sanitized = avif.sanitize(data)
    assert (sanitized.buffer, sanitized.pixels) == ((60, 40), 2400)


def test_a_film_alone_is_named() -> None:
    data = encoded(photo(), "AVIF", save_all=True, append_images=[photo()])
    at = data.index(b"meta", 0, data.index(b"moov"))
    with pytest.raises(UnsupportedType, match=r"a kind of AVIF .*a video without a still image"):
        decode(data[:at] + b"free" + data[at + 4 :], max_pixels=LIMIT)


@pytest.mark.parametrize(
    ("data", "max_pixels", "size"),
    [
        (encoded(photo(), "AVIF"), 2399, "60x40"),
        (sized(encoded(photo(600, 400), "AVIF"), 10, 10), 1000, "600x400"),
        (sized(encoded(photo(), "AVIF"), 16_000, 16_000), LIMIT, "16000x16000"),
    ],
)
def test_the_larger_of_the_sizes_of_boxes_and_stream_counts(
    data: bytes, max_pixels: int, size: str
) -> None:
    with pytest.raises(TooLarge, match=f"{size} is over {max_pixels} pixels"):
        decode(data, max_pixels=max_pixels)


def test_an_avif_of_the_maximum_of_pixels_is_decoded() -> None:
    data = encoded(photo(), "AVIF")
    assert avif.sanitize(data).buffer == (60, 40)
    assert decode(data, max_pixels=2400).size == (60, 40)


def av1_of(data: bytes) -> bytes:
    """Give the bytes of the first item."""
    (meta,) = (part for part in boxes(data, 0, len(data)) if part.name == b"meta")
    start, content = next(iter(items(data, meta)))
    assert data[start : start + 4] == b"av01"
    return content


def test_a_file_of_too_many_frames_is_too_large() -> None:
    data = encoded(photo(), "AVIF")
    stream = av1_of(data)
    frame = stream[stream.index(b"\x32") :]  # a unit of a frame that states its length
    many = stream + 20 * frame
    assert list(av1.frames(many)) == [(60, 40)] * 21
    start = data.index(stream)
    longer = bytearray(data[:start] + many)
    place = data.index(struct.pack(">II", start, len(stream)))
    struct.pack_into(">II", longer, place, start, len(many))
    mdat = data.index(b"mdat") - 4
    struct.pack_into(">I", longer, mdat, len(longer) - mdat)
    with pytest.raises(TooLarge, match="60x40 in 21 passes is over 16 times 2400 pixels"):
        decode(bytes(longer), max_pixels=2400)


# Headers of AV1, written bit by bit.


@dataclass(frozen=True)
class Header:
    """The fields of a sequence header."""

    width: int = 60
    height: int = 40
    is_still: bool = False
    has_timing: bool = False
    is_equal: bool = False
    has_model: bool = False
    has_delays: bool = False
    points: int = 1
    level: int = 8
    has_numbers: bool = False
    has_order: bool = False
    screen: int = 2
    motion: int = 2

    def bits(self) -> str:
        """Write the header, as far as it is read."""
        said = f"{0:03b}0{self.is_still:d}"
        said += f"{0:05b}" if self.is_still else self._operating_points()
        said += f"{15:04b}{14:04b}{self.width - 1:016b}{self.height - 1:015b}"
        if not self.is_still:
            said += "1" + f"{5:04b}{3:03b}" if self.has_numbers else "0"
        said += "000"
        if not self.is_still:
            said += "0000" + ("1" + "00" if self.has_order else "0")
            said += "1" if self.screen == 2 else f"0{self.screen}"
            if self.screen:
                said += "1" if self.motion == 2 else f"0{self.motion}"
        return said

    def _operating_points(self) -> str:
        said = f"{self.has_timing:d}"
        if self.has_timing:
            said += "1" * 64 + (f"1{0:03b}1{0:03b}" if self.is_equal else "0")
            said += "1" + f"{9:05b}{7:032b}{3:05b}{11:05b}" if self.has_model else "0"
        said += f"{self.has_delays:d}{self.points - 1:05b}"
        for _ in range(self.points):
            said += f"{0:012b}{self.level:05b}" + ("1" if self.level > 7 else "")
            if self.has_timing and self.has_model:
                said += "1" + "1" * 21
            if self.has_delays:
                said += f"1{3:04b}"
        return said

    def frame(self, kind: int, *, is_shown: bool, says: bool, is_resilient: bool = True) -> str:
        """Write a frame's header up to whether it says its size."""
        said = f"0{kind:02b}{is_shown:d}"
        if not is_shown:
            said += "1"
        elif self.has_timing and self.has_model and not self.is_equal:
            said += f"{0:012b}"
        if kind != 3 and not (kind == 0 and is_shown):
            said += f"{is_resilient:d}"
        said += "0"
        screen = self.screen if self.screen < 2 else 1
        said += "1" if self.screen == 2 else ""
        said += "1" if screen and self.motion == 2 else ""
        said += f"{0:011b}" if self.has_numbers else ""
        return said if kind == 3 else said + f"{says:d}"


def unit(kind: int, bits: str) -> bytes:
    """Write a unit with its size."""
    content = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    return bytes([kind << 3 | 2, len(content)]) + content


HEADERS = st.builds(
    Header,
    width=st.integers(1, 65_536),
    height=st.integers(1, 32_768),
    has_timing=st.booleans(),
    is_equal=st.booleans(),
    has_model=st.booleans(),
    has_delays=st.booleans(),
    points=st.integers(1, 3),
    level=st.sampled_from([0, 7, 8, 20]),
    has_numbers=st.booleans(),
    has_order=st.booleans(),
    screen=st.integers(0, 2),
    motion=st.integers(0, 2),
)


@given(header=HEADERS, kind=st.sampled_from([0, 1, 2]), is_shown=st.booleans(), says=st.booleans())
@settings(max_examples=300, deadline=None, derandomize=True)
def test_a_frame_is_as_large_as_its_sequence_unless_it_says_a_size(
    header: Header, kind: int, *, is_shown: bool, says: bool
) -> None:
    stream = unit(1, header.bits()) + unit(6, header.frame(kind, is_shown=is_shown, says=says))
    expected = (65_536, 32_768) if says else (header.width, header.height)
    assert list(av1.frames(stream)) == [expected]


SEQUENCE = unit(1, Header().bits())
FRAME = unit(6, Header().frame(0, is_shown=True, says=False))
STREAMS = {
    "a frame that switches states its size": (
        SEQUENCE + unit(3, Header().frame(3, is_shown=True, says=True)), [(65_536, 32_768)],
    ),
    "a still image has the size of its sequence": (
        unit(1, Header(is_still=True).bits()) + unit(6, "1" * 8), [(60, 40)],
    ),
    "a frame that is shown again is not decoded again": (
        SEQUENCE + unit(3, "1" + "0" * 7), [(60, 40)],  # at most
    ),
    "a frame before its sequence cannot be decoded": (unit(6, "0" * 8), []),
    "a unit without a length ends with the stream": (bytes([1 << 3]) + SEQUENCE[2:], []),
    "an extended unit": (bytes([SEQUENCE[0] | 4, 0]) + SEQUENCE[1:] + FRAME, [(60, 40)]),
    "a length without an end": (b"\x32" + b"\xff" * 8, []),
    "a unit cut short": (b"\x32", []),
}  # fmt: skip


@pytest.mark.parametrize(("stream", "frames"), STREAMS.values(), ids=STREAMS)
def test_the_frames_of_a_stream(stream: bytes, frames: list[tuple[int, int]]) -> None:
    assert list(av1.frames(stream)) == frames


def test_too_many_units_are_refused() -> None:
    with pytest.raises(ValueError, match="too many units"):
        list(av1.frames(b"\x12\0" * 65_537))


# Boxes.


def located(version: int, extents: Sequence[tuple[int, int]], method: int = 0) -> bytes:
    """Write an item's location."""
    number = struct.pack(">I" if version == 2 else ">H", 1)
    count = struct.pack(">I" if version == 2 else ">H", 1)
    said = struct.pack(">BBH", version, 0, 0) + b"\x44\0" + count + number
    said += struct.pack(">H", method) if version else b""
    said += struct.pack(">HH", 0, len(extents))
    return box(b"iloc", said + b"".join(struct.pack(">II", *extent) for extent in extents))


def informed(version: int, kind: bytes = b"av01") -> bytes:
    entry = struct.pack(">I", version << 24)
    entry += struct.pack(">H" if version == 2 else ">I", 1) + bytes(2) + kind + b"\0"
    head = struct.pack(">IH", 0, 1) if version == 2 else struct.pack(">II", 1 << 24, 1)
    return box(b"iinf", head + box(b"infe", entry))


def contents(meta: bytes, behind: bytes = b"") -> list[bytes]:
    data = box(b"meta", bytes(4) + meta) + behind
    (outer,) = (part for part in boxes(data, 0, len(data)) if part.name == b"meta")
    return [content for _, content in items(data, outer)]


@pytest.mark.parametrize("version", [0, 1, 2])
def test_an_item_is_where_its_parts_are(version: int) -> None:
    meta = located(version, [(0, 4), (4, 4)]) + informed(3 if version == 2 else 2)
    assert contents(meta)[0][4:] == b"meta"


def test_an_item_may_be_in_a_box_of_its_own_and_without_a_type_is_none() -> None:
    meta = located(1, [(1, 3), (4, 0)], method=1) + informed(2) + box(b"idat", b"abcdef")
    assert contents(meta) == [b"bcdef"]
    assert contents(located(0, [(0, 4)]) + informed(4)) == []


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        (b"", "no items"),
        (informed(2), "no items"),
        (located(0, [(0, 100_000)]) + informed(2), "its items are longer than the file"),
        (located(0, [(0, 0)] * 9) + informed(2), "its items are longer than the file"),
        (located(0, [(0, 0)] * 4097) + informed(2), "too many parts"),
        (box(b"iloc", bytes(4) + b"\x44\0\xff\xff") + informed(2), "too many items"),
        (box(b"iloc", bytes(4) + b"\x44\0\0\1\0") + informed(2), "cut short"),
        (struct.pack(">I4s", 500, b"iloc"), "a box is longer than what it is in"),
        (struct.pack(">I4s", 5, b"iloc"), "a box is longer than what it is in"),
        (box(b"free", b"") * 4097, "too many boxes"),
    ],
)
def test_boxes_that_contradict_themselves_are_refused(meta: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        contents(meta)


def test_a_box_may_have_a_long_length_or_reach_to_the_end() -> None:
    data = struct.pack(">I4sQ", 1, b"long", 18) + b"ab" + struct.pack(">I4s", 0, b"last") + b"cde"
    assert list(boxes(data, 0, len(data))) == [Box(b"long", 16, 18), Box(b"last", 26, 29)]


@pytest.mark.parametrize("kind", [b"grid", b"av01"])
def test_an_avif_without_frames_is_unreadable(kind: bytes) -> None:
    head = box(b"ftyp", b"avif" + bytes(4))
    meta = box(b"meta", bytes(4) + located(0, [(0, 4)]) + informed(2, kind))
    for data in (head + meta, head, head + meta + meta):
        with pytest.raises(UnreadableImage):
            decode(data, max_pixels=LIMIT)

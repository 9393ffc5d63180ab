"""Every TIFF variant that writers produce is decoded correctly, or refused by name."""

import itertools
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from mutations import encoded
from PIL import Image

from service.errors import ServiceError, UnreadableImage, UnsupportedType
from service.imaging.image_decoder import decode

LIMIT = 1_000_000
WIDTH, HEIGHT, ROWS = 16, 8, 4  # of the images, and rows of a strip
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK = 0, 1, 2, 3, 5
UNSIGNED, SIGNED, FLOAT = 1, 2, 3
RAW, DEFLATE, PACK_BITS = 1, 8, 32773
CHANNELS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, CMYK: 4}
MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))

Values = npt.NDArray[np.int64] | npt.NDArray[np.float64]


@dataclass(frozen=True)
class Kind:
    """How a TIFF holds its pixels."""

    order: str
    photometric: int
    bits: int
    format: int
    planar: int
    compression: int
    fill_order: int = 1
    extra: int | None = None
    is_tiled: bool = False

    @property
    def channels(self) -> int:
        """How many samples a pixel has."""
        return CHANNELS[self.photometric] + (self.extra is not None)

    def exists(self) -> bool:
        """Tell whether a writer could mean it."""
        return not (
            (self.photometric == PALETTE and (self.format != UNSIGNED or self.bits > 8))
            or (self.format == FLOAT and self.bits < 16)
            or (self.fill_order == 2 and self.bits > 8 and self.format != UNSIGNED)
            or (self.planar == 2 and self.channels == 1)
        )


def kinds() -> Iterator[Kind]:
    """Give all of them: three thousand and more."""
    for given in itertools.product(
        "<>",
        CHANNELS,
        (1, 2, 4, 8, 12, 16, 32),
        (UNSIGNED, SIGNED, FLOAT),
        (1, 2),
        (RAW, DEFLATE, PACK_BITS),
        (1, 2),
        (None, 0, 2),
        (False, True),
    ):
        kind = Kind(*given)
        if kind.exists():
            yield kind


def pack_bits(data: bytes) -> bytes:
    """Write bytes as they are, in pieces that say how long they are."""
    pieces = [data[at : at + 128] for at in range(0, len(data), 128)]
    return b"".join(bytes([len(piece) - 1]) + piece for piece in pieces)


def written(order: str, tags: Mapping[int, Sequence[int]], strips: Sequence[bytes]) -> bytes:
    """Write a TIFF of these strips, of which tags 273 and 279, or 324 and 325, tell."""
    places = list(itertools.accumulate(map(len, strips), initial=8))
    is_tiled = 322 in tags
    where = {324 if is_tiled else 273: places[:-1], 325 if is_tiled else 279: [*map(len, strips)]}
    body = b"".join(strips) + bytes(places[-1] % 2)
    start = 8 + len(body)
    entries, behind = b"", b""
    base = start + 2 + 12 * (len(tags) + 2) + 4
    for tag, values in sorted({**tags, **where}.items()):
        letter, type_ = ("I", 4) if tag in where else ("H", 3)
        content = struct.pack(f"{order}{len(values)}{letter}", *values)
        entries += struct.pack(order + "HHI", tag, type_, len(values))
        if len(content) > 4:
            entries += struct.pack(order + "I", base + len(behind))
            behind += content
        else:
            entries += content.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", start)
    return head + body + struct.pack(order + "H", len(tags) + 2) + entries + bytes(4) + behind


def samples(kind: Kind, chance: np.random.Generator) -> tuple[Values, npt.NDArray[np.float64]]:
    """Give numbers (rows, columns, channels), the extremes among them, and their shares."""
    shape = (HEIGHT, WIDTH, kind.channels)
    if kind.format == FLOAT:
        numbers = chance.random(shape).astype(np.float32).astype(np.float64)
        numbers[0, 0], numbers[0, 1] = 0, 1
        return numbers, numbers
    lowest = -(1 << kind.bits - 1) if kind.format == SIGNED else 0
    highest = lowest + (1 << kind.bits) - 1
    whole = chance.integers(lowest, highest, shape, endpoint=True)
    whole[0, 0], whole[0, 1] = lowest, highest
    return whole, (whole - lowest) / (highest - lowest)


def stored(values: Values, kind: Kind) -> bytes:
    """Write rows of samples, (rows, samples of a row)."""
    if kind.bits in {8, 16, 32}:
        letter = {UNSIGNED: "u", SIGNED: "i", FLOAT: "f"}[kind.format]
        raw = values.astype(f"{kind.order}{letter}{kind.bits // 8}").tobytes()
    else:
        places = np.arange(kind.bits - 1, -1, -1)
        bits = (values.astype(np.int64)[..., None] >> places & 1).astype(np.uint8)
        raw = np.packbits(bits.reshape(len(values), -1), axis=1).tobytes()
    packed = {RAW: bytes, DEFLATE: zlib.compress, PACK_BITS: pack_bits}[kind.compression](raw)
    return packed.translate(MIRRORED) if kind.fill_order == 2 else packed


def made(
    kind: Kind, values: Values, colours: npt.NDArray[np.int64], extra: Mapping[int, Sequence[int]]
) -> bytes:
    """Write an image of such a kind."""
    planes = (
        [values[..., channel] for channel in range(kind.channels)]
        if kind.planar == 2
        else [values.reshape(HEIGHT, -1)]
    )
    tags: dict[int, Sequence[int]] = {
        256: [WIDTH],
        257: [HEIGHT],
        258: [kind.bits] * kind.channels,
        259: [kind.compression],
        262: [kind.photometric],
        266: [kind.fill_order],
        277: [kind.channels],
        284: [kind.planar],
        339: [kind.format] * kind.channels,
        **extra,
    }
    if kind.extra is not None:
        tags[338] = [kind.extra]
    if kind.photometric == PALETTE:
        tags[320] = colours.ravel().tolist()
    if not kind.is_tiled:
        strips = [stored(p[at : at + ROWS], kind) for p in planes for at in range(0, HEIGHT, ROWS)]
        return written(kind.order, {**tags, 278: [ROWS]}, strips)
    tiles = [stored(np.pad(plane, ((0, 16 - HEIGHT), (0, 0))), kind) for plane in planes]
    return written(kind.order, {**tags, 322: [16], 323: [16]}, tiles)


def meant(
    kind: Kind, values: Values, shares: npt.NDArray[np.float64], colours: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Compute the colours, 0 to 255, by TIFF's specification; alpha over white."""
    first = shares[..., :1]
    rgb = {
        WHITE_IS_ZERO: lambda: np.repeat(1 - first, 3, 2),
        BLACK_IS_ZERO: lambda: np.repeat(first, 3, 2),
        RGB: lambda: shares[..., :3],
        PALETTE: lambda: np.moveaxis(colours[:, values[..., 0]], 0, -1) / 65535,
        CMYK: lambda: (1 - shares[..., :3]) * (1 - shares[..., 3:4]),
    }[kind.photometric]()
    if kind.extra == 2:
        alpha = shares[..., -1:]
        rgb = rgb * alpha + 1 - alpha
    return np.asarray(rgb * 255)


def shown(kind: Kind, chance: np.random.Generator) -> float | str:
    """Decode such an image; returns the largest difference, or the error message."""
    values, shares = samples(kind, chance)
    colours = chance.integers(0, 65535, (3, 1 << min(kind.bits, 8)), endpoint=True)
    data = made(kind, values, colours, {})
    try:
        image = np.asarray(decode(data, max_pixels=LIMIT), np.float64)
    except ServiceError as error:
        return str(error)
    return float(np.abs(image - meant(kind, values, shares, colours)).max())


@pytest.mark.parametrize("photometric", CHANNELS)
@pytest.mark.parametrize("order", ["<", ">"])
def test_each_kind_is_shown_right_or_refused_by_name(order: str, photometric: int) -> None:
    chance = np.random.default_rng(1)
    outcomes = {
        kind: shown(kind, chance)
        for kind in kinds()
        if kind.order == order and kind.photometric == photometric
    }
    wrong = {
        kind: outcome
        for kind, outcome in outcomes.items()
        if (outcome > 2.6 if isinstance(outcome, float) else "a kind of TIFF" not in outcome)
    }
    assert not wrong
    assert sum(isinstance(outcome, float) for outcome in outcomes.values()) > 20


PLAIN = Kind("<", BLACK_IS_ZERO, 8, UNSIGNED, 1, RAW)


@pytest.mark.parametrize(
    "kind",
    [
        Kind("<", WHITE_IS_ZERO, 16, UNSIGNED, 1, RAW),
        Kind("<", WHITE_IS_ZERO, 16, UNSIGNED, 1, DEFLATE),
        Kind("<", WHITE_IS_ZERO, 32, FLOAT, 1, RAW),
        Kind("<", BLACK_IS_ZERO, 12, UNSIGNED, 1, RAW),
        Kind("<", BLACK_IS_ZERO, 8, SIGNED, 1, RAW),
        Kind("<", BLACK_IS_ZERO, 16, SIGNED, 1, RAW),
        Kind(">", BLACK_IS_ZERO, 16, SIGNED, 1, RAW),
        Kind("<", BLACK_IS_ZERO, 32, UNSIGNED, 1, RAW),
        Kind("<", BLACK_IS_ZERO, 32, UNSIGNED, 1, DEFLATE),
        Kind("<", RGB, 16, UNSIGNED, 2, RAW),
        Kind(">", RGB, 16, UNSIGNED, 2, RAW),
        Kind("<", CMYK, 16, UNSIGNED, 2, RAW),
        Kind("<", RGB, 16, UNSIGNED, 2, RAW, extra=2),
        Kind("<", RGB, 8, UNSIGNED, 1, RAW, fill_order=2),
        Kind("<", PALETTE, 4, UNSIGNED, 1, RAW, fill_order=2),
    ],
)
def test_kinds_that_were_once_decoded_wrong_or_refused_are_decoded_right(kind: Kind) -> None:
    outcome = shown(kind, np.random.default_rng(2))
    assert isinstance(outcome, float), outcome
    assert outcome <= 2


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_a_palette_of_8_bits_is_one_of_16(bits: int) -> None:
    kind = Kind("<", PALETTE, bits, UNSIGNED, 1, RAW)
    values, shares = samples(kind, np.random.default_rng(3))
    colours = np.random.default_rng(3).integers(1, 255, (3, 1 << bits), endpoint=True)
    image = np.asarray(decode(made(kind, values, colours, {}), max_pixels=LIMIT), np.float64)
    assert np.abs(image - meant(kind, values, shares, colours * 257)).max() <= 0.01


@pytest.mark.parametrize(
    ("kind", "extra", "said"),
    [
        (Kind("<", RGB, 32, FLOAT, 1, RAW), {}, "32-bit float RGB"),
        (Kind(">", RGB, 32, FLOAT, 1, RAW), {}, "big-endian 32-bit float RGB"),
        (Kind("<", BLACK_IS_ZERO, 16, FLOAT, 1, RAW), {}, "16-bit float grey"),
        (Kind("<", RGB, 16, UNSIGNED, 1, RAW), {262: [8]}, "16-bit LAB"),
        (Kind("<", RGB, 16, SIGNED, 1, RAW), {}, "16-bit signed RGB"),
        (
            Kind("<", BLACK_IS_ZERO, 16, UNSIGNED, 1, RAW, extra=2),
            {},
            "16-bit grey, 1 more channel",
        ),
        (
            Kind("<", BLACK_IS_ZERO, 8, UNSIGNED, 2, RAW, extra=2),
            {},
            "8-bit grey, 1 more channel, planar",
        ),
        (Kind(">", BLACK_IS_ZERO, 16, SIGNED, 1, DEFLATE), {}, "big-endian 16-bit signed grey"),
        (PLAIN, {259: [34661]}, "8-bit grey, JBIG"),
        (PLAIN, {259: [9999]}, "8-bit grey, compression 9999"),
        (PLAIN, {262: [77]}, "8-bit colours 77"),
        (PLAIN, {339: [4]}, "8-bit undefined grey"),
        (PLAIN, {339: [9]}, "8-bit odd grey"),
        (Kind("<", RGB, 8, UNSIGNED, 1, RAW), {258: [5, 6, 5]}, "5/6/5-bit RGB"),
        (Kind("<", RGB, 8, UNSIGNED, 1, RAW), {339: [1, 2, 1]}, "8-bit mixed RGB"),
    ],
)
def test_a_whole_tiff_of_a_kind_that_is_not_read_is_not_called_broken(
    kind: Kind, extra: Mapping[int, Sequence[int]], said: str
) -> None:
    values, _ = samples(kind, np.random.default_rng(4))
    with pytest.raises(UnsupportedType) as caught:
        decode(made(kind, values, np.zeros((3, 256), np.int64), extra), max_pixels=LIMIT)
    sentence = str(caught.value)
    assert sentence.startswith(f"a kind of TIFF this service does not read ({said}")
    assert sentence.endswith("); save it as PNG or JPEG")


@pytest.mark.parametrize(
    ("extra", "magic"),
    [
        ({262: [32803]}, b""),  # the samples of a sensor
        ({50706: [1, 4]}, b""),  # a version of DNG
        ({254: [1], 330: [8]}, b""),  # a preview, and where the image is
        ({}, b"CR\2\0"),  # Canon's
    ],
)
def test_a_raw_file_of_a_camera_is_named(extra: Mapping[int, Sequence[int]], magic: bytes) -> None:
    values, _ = samples(PLAIN, np.random.default_rng(5))
    data = made(PLAIN, values, np.zeros((3, 256), np.int64), extra)
    with pytest.raises(UnsupportedType, match="this is a camera's raw file; export it as JPEG"):
        decode(data[:8] + magic + data[8 + len(magic) :], max_pixels=LIMIT)


@pytest.mark.parametrize("kind", [PLAIN, Kind("<", RGB, 32, FLOAT, 1, RAW)])
def test_a_tiff_cut_short_anywhere_is_no_other_image(kind: Kind) -> None:
    """The directory is at the end: without it the variant is unknown."""
    values, _ = samples(kind, np.random.default_rng(6))
    data = made(kind, values, np.zeros((3, 256), np.int64), {})
    for length in range(8, len(data) - 4 * 12, 7):
        with pytest.raises(UnreadableImage):
            decode(data[:length], max_pixels=LIMIT)


def big(data: bytes, order: str) -> bytes:
    """Make a BigTIFF of a TIFF of one strip, which Pillow writes for this machine's order only."""
    (start,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, start)
    sizes = {3: 2, 4: 4}
    entries, behind = b"", b""
    base = 16 + len(data) + 8 + 20 * count + 8
    for number in range(count):
        at = start + 2 + 12 * number
        tag, type_, values = struct.unpack_from(order + "HHI", data, at)
        size = sizes[type_] * values
        place = at + 8 if size <= 4 else struct.unpack_from(order + "I", data, at + 8)[0]
        content = data[place : place + size]
        if tag in {273, 324}:  # what stood behind 8 bytes stands behind 16
            moved = [value + 16 for value in struct.unpack(f"{order}{values}I", content)]
            content, type_ = struct.pack(f"{order}{values}Q", *moved), 16
        entries += struct.pack(order + "HHQ", tag, type_, values)
        if len(content) > 8:
            entries += struct.pack(order + "Q", base + len(behind))
            behind += content
        else:
            entries += content.ljust(8, b"\0")
    magic = b"II+\0" if order == "<" else b"MM\0+"
    head = magic + struct.pack(order + "HHQ", 8, 0, 16 + len(data))
    return head + data + struct.pack(order + "Q", count) + entries + bytes(8) + behind


@pytest.mark.parametrize("compression", [RAW, DEFLATE])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_bigtiff_of_either_order_is_read(order: str, compression: int) -> None:
    kind = Kind(order, RGB, 8, UNSIGNED, 1, compression)
    values, shares = samples(kind, np.random.default_rng(7))
    data = big(made(kind, values, np.zeros((3, 1), np.int64), {}), order)
    image = np.asarray(decode(data, max_pixels=LIMIT), np.float64)
    assert np.abs(image - shares * 255).max() <= 0.01


def test_old_tags_are_no_reason_to_refuse() -> None:
    """Fractions, texts and directories that Pillow would read first, and cannot."""
    noise = np.random.default_rng(0).integers(0, 255, (12, 20, 3), np.uint8)
    data = bytearray(encoded(Image.fromarray(noise), "TIFF", tiffinfo={305: "a" * 20, 270: "b"}))
    for at in range(struct.unpack_from("<I", data, 4)[0] + 2, len(data) - 12, 12):
        tag, _, count = struct.unpack_from("<HHI", data, at)
        if tag in {305, 270}:
            struct.pack_into("<HHII", data, at, tag, 5, 1 << 20, 1 << 31)
        if not count:
            break
    assert (np.asarray(decode(bytes(data), max_pixels=LIMIT)) == noise).all()

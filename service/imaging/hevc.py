"""Read the sizes and the number of the images in an HEVC stream, without decoding."""

from collections.abc import Iterator

from service.imaging.bit_reader import BitReader

_SEQUENCE = 33  # the NAL unit type of a sequence parameter set, which has the image size
_SLICES = range(22)  # NAL unit types of image slices
_PROFILE = 88  # bits
_LENGTH = 4  # bytes of a unit's length field
_MAX_UNITS = 65_536
_HEAD = 512  # bytes of a unit that are read


def configured_sizes(content: bytes) -> Iterator[tuple[int, int]]:
    """Yield the widths and heights in a decoder configuration, the content of an `hvcC` box."""
    offset = 23
    for _ in range(content[22] if len(content) > 22 else 0):  # noqa: PLR2004 - the count's offset
        count = int.from_bytes(content[offset + 1 : offset + 3], "big")
        offset += 3
        for _unit in range(count):
            size = int.from_bytes(content[offset : offset + 2], "big")
            yield from _sizes(content[offset + 2 : offset + 2 + size])
            offset += 2 + size


def images(content: bytes) -> tuple[list[tuple[int, int]], int]:
    """Return the sizes in an item's stream, and the number of images in it."""
    sizes: list[tuple[int, int]] = []
    count = offset = 0
    for _ in range(_MAX_UNITS):
        if offset + _LENGTH >= len(content):
            return sizes, count
        size = int.from_bytes(content[offset : offset + _LENGTH], "big")
        unit = content[offset + _LENGTH : offset + _LENGTH + min(size, _HEAD)]
        sizes += _sizes(unit)
        count += _kind(unit) in _SLICES and unit[2:3] >= b"\x80"  # the first slice of an image
        offset += _LENGTH + size
    raise ValueError("too many units")


def _kind(unit: bytes) -> int:
    return unit[0] >> 1 & 0x3F if unit else -1


def _sizes(unit: bytes) -> list[tuple[int, int]]:
    """Return the image size in a unit, if it is a sequence parameter set."""
    if _kind(unit) != _SEQUENCE:
        return []
    bits = BitReader(unit[2:_HEAD].replace(b"\0\0\3", b"\0\0"))
    bits.read(4)
    layers = bits.read(3)
    bits.read(1 + _PROFILE + 8)
    flags = [(bits.read(), bits.read()) for _ in range(layers)]
    bits.read(2 * (8 - layers) if layers else 0)
    for has_profile, has_level in flags:
        bits.read(_PROFILE * has_profile + 8 * has_level)
    bits.read_number()
    if bits.read_number() == 3:  # noqa: PLR2004 - 4:4:4, with a flag for separate colour planes
        bits.read()
    return [(bits.read_number(), bits.read_number())]

"""How large the images of an HEVC stream are, and how many, before any is decoded."""

from collections.abc import Iterator

from service.imaging.bit_reader import Bits

_SEQUENCE = 33  # the type of a unit that says how large images are
_SLICES = range(22)  # types of units that hold a part of an image
_PROFILE = 88  # bits
_LENGTH = 4  # bytes that say how long a unit is
_MOST_UNITS = 65_536
_MOST_HEAD = 512  # bytes of a unit that are looked at


def configured(content: bytes) -> Iterator[tuple[int, int]]:
    """Give the widths and heights in a decoder's configuration, the content of a box `hvcC`."""
    at = 23
    for _ in range(content[22] if len(content) > 22 else 0):  # noqa: PLR2004 - where the count is
        count = int.from_bytes(content[at + 1 : at + 3], "big")
        at += 3
        for _unit in range(count):
            size = int.from_bytes(content[at : at + 2], "big")
            yield from _sizes(content[at + 2 : at + 2 + size])
            at += 2 + size


def images(content: bytes) -> tuple[list[tuple[int, int]], int]:
    """Give the sizes that an item's stream says itself, and how many images it holds."""
    sizes: list[tuple[int, int]] = []
    count = at = 0
    for _ in range(_MOST_UNITS):
        if at + _LENGTH >= len(content):
            return sizes, count
        size = int.from_bytes(content[at : at + _LENGTH], "big")
        unit = content[at + _LENGTH : at + _LENGTH + min(size, _MOST_HEAD)]
        sizes += _sizes(unit)
        count += _kind(unit) in _SLICES and unit[2:3] >= b"\x80"  # the first of its image
        at += _LENGTH + size
    raise ValueError("too many units")


def _kind(unit: bytes) -> int:
    return unit[0] >> 1 & 0x3F if unit else -1


def _sizes(unit: bytes) -> list[tuple[int, int]]:
    """Read the width and height of images, if this unit says them."""
    if _kind(unit) != _SEQUENCE:
        return []
    bits = Bits(unit[2:_MOST_HEAD].replace(b"\0\0\3", b"\0\0"))
    bits.read(4)
    layers = bits.read(3)
    bits.read(1 + _PROFILE + 8)
    said = [(bits.read(), bits.read()) for _ in range(layers)]
    bits.read(2 * (8 - layers) if layers else 0)
    for has_profile, has_level in said:
        bits.read(_PROFILE * has_profile + 8 * has_level)
    bits.read_number()
    if bits.read_number() == 3:  # noqa: PLR2004 - colours that may be apart
        bits.read()
    return [(bits.read_number(), bits.read_number())]

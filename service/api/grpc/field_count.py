"""How many fields a message has, told from its bytes.

A message costs up to 50 times its bytes once it is read, if it is all small fields: they are
counted before it is.
"""

from collections.abc import Iterator, Mapping

from service.errors import MalformedRequest

Within = Mapping[int, "Within"]
"""The fields that are messages themselves and are looked into, by their numbers."""

_VARINT, _EIGHT, _LENGTH, _FOUR = 0, 1, 2, 5  # types of a field's value
_FIXED = {_EIGHT: 8, _FOUR: 4}  # bytes
_LONGEST = 10  # bytes of a varint
_BROKEN = "the message is broken or cut short"


def check(data: memoryview, within: Within, most: int) -> None:
    """Raise `MalformedRequest` if a message is broken, or has more fields than it may."""
    for count, _ in enumerate(_fields(data, within)):
        if count >= most:
            raise MalformedRequest(f"the message has over {most} fields; send tensors raw")


def _fields(data: memoryview, within: Within) -> Iterator[int]:
    """Give the numbers of a message's fields, and after each what is in it."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        yield number
        if kind == _VARINT:
            _, at = _varint(data, at)
            continue
        size, at = _varint(data, at) if kind == _LENGTH else (_FIXED.get(kind, len(data)), at)
        if at + size > len(data):
            raise MalformedRequest(_BROKEN)
        if kind == _LENGTH and number in within:
            yield from _fields(data[at : at + size], within[number])
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Read a number of 7 bits a byte; gives it, and where it ends."""
    value = 0
    for place, byte in enumerate(data[at : at + _LONGEST]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:  # noqa: PLR2004 - the last has no eighth bit
            return value, at + place + 1
    raise MalformedRequest(_BROKEN)

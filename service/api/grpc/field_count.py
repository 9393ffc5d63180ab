"""Count the fields of an encoded protobuf message.

A parsed message of many small fields takes up to 50 times its bytes, so they are counted first.
"""

from collections.abc import Iterator, Mapping

from service.errors import MalformedRequest

Nested = Mapping[int, "Nested"]
"""The fields, by number, that are messages whose own fields count, too."""

_VARINT, _EIGHT, _LENGTH, _FOUR = 0, 1, 2, 5  # types of a field's value
_FIXED = {_EIGHT: 8, _FOUR: 4}  # bytes
_MAX_VARINT = 10  # bytes of a varint
_BROKEN = "the message is broken or cut short"


def check(data: memoryview, nested: Nested, max_fields: int) -> None:
    """Raise `MalformedRequest` if a message is broken, or has over `max_fields` fields."""
    for count, _ in enumerate(_fields(data, nested)):
        if count >= max_fields:
            raise MalformedRequest(f"the message has over {max_fields} fields; send tensors raw")


def _fields(data: memoryview, nested: Nested) -> Iterator[int]:
    """Give the numbers of a message's fields, each followed by those nested in it."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, kind = tag >> 3, tag & 7
        yield number
        if kind == _VARINT:
            _, position = _varint(data, position)
            continue
        size, position = (
            _varint(data, position) if kind == _LENGTH else (_FIXED.get(kind, len(data)), position)
        )
        if position + size > len(data):
            raise MalformedRequest(_BROKEN)
        if kind == _LENGTH and number in nested:
            yield from _fields(data[position : position + size], nested[number])
        position += size


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """Read a varint; give it and the position after it."""
    value = 0
    for index, byte in enumerate(data[position : position + _MAX_VARINT]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:  # noqa: PLR2004 - the last has no eighth bit
            return value, position + index + 1
    raise MalformedRequest(_BROKEN)

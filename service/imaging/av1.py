"""Read the frame sizes of an AV1 stream from its headers, without decoding."""

from collections.abc import Iterator
from dataclasses import dataclass

from service.imaging.bit_reader import BitReader

_SEQUENCE, _FRAME_HEADER, _FRAME = 1, 3, 6  # OBU types
_MAX_UNITS = 65_536
_HEAD = 512  # bytes of a unit that are read
_SELECT = 2  # a sequence's tool that each frame turns on or off
_KEY, _SWITCH = 0, 3  # frame types


@dataclass(frozen=True, slots=True)
class _Sequence:
    """The fields of a sequence header that frame sizes depend on."""

    width: int
    height: int
    max_width: int  # of a frame that overrides the size
    max_height: int
    is_still: bool  # reduced still image header: the frame has the sequence's size
    timing_bits: int
    id_bits: int  # of a frame's id
    screen_tools: int
    integer_motion: int


def frames(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the largest width and height that decoding each frame may take."""
    sequence = None
    for kind, content in _units(data):
        if kind == _SEQUENCE:
            sequence = _sequence(BitReader(content))
        elif kind in {_FRAME_HEADER, _FRAME} and sequence is not None:
            if _overrides_size(BitReader(content), sequence):
                yield sequence.max_width, sequence.max_height
            else:
                yield sequence.width, sequence.height


def _units(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the type and the first `_HEAD` bytes of each unit (OBU)."""
    offset = 0
    for _ in range(_MAX_UNITS):
        if offset >= len(data):
            return
        head = data[offset]
        offset += 2 if head & 4 else 1  # with an extension
        size = len(data) - offset
        if head & 2:  # with a size: a LEB128 number
            size = 0
            for group in range(8):
                byte = data[offset] if offset < len(data) else 0
                size |= (byte & 0x7F) << 7 * group
                offset += 1
                if not byte & 0x80:
                    break
        yield head >> 3 & 15, data[offset : offset + min(size, _HEAD)]
        offset += size
    raise ValueError("too many units")


def _sequence(bits: BitReader) -> _Sequence:
    bits.read(4)  # profile, still image
    is_still = bool(bits.read())
    timing = 0
    if is_still:
        bits.read(5)
    else:
        timing = _operating_points(bits)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    width, height = bits.read(width_bits) + 1, bits.read(height_bits) + 1
    max_size = 1 << width_bits, 1 << height_bits
    id_bits = 0
    if not is_still and bits.read():
        id_bits = bits.read(4) + 2
        id_bits += bits.read(3) + 1
    bits.read(3)
    tools = _SELECT, _SELECT
    if not is_still:
        tools = _tools(bits)
    return _Sequence(width, height, *max_size, is_still, timing, id_bits, *tools)


def _operating_points(bits: BitReader) -> int:
    """Skip them; return the number of timing bits in a frame header."""
    delay_bits = timing = 0
    has_model = False
    if bits.read():  # timing
        bits.read(64)
        is_equal = bits.read()
        if is_equal:
            bits.read_number()
        has_model = bool(bits.read())
        if has_model:
            delay_bits = bits.read(5) + 1
            bits.read(32 + 5)
            timing = 0 if is_equal else 1
            timing *= bits.read(5) + 1
    has_delays = bits.read()
    for _ in range(bits.read(5) + 1):
        bits.read(12)
        if bits.read(5) > 7:  # noqa: PLR2004 - levels that have two tiers
            bits.read()
        if has_model and bits.read():
            bits.read(2 * delay_bits + 1)
        if has_delays and bits.read():
            bits.read(4)
    return timing


def _tools(bits: BitReader) -> tuple[int, int]:
    """Return the two tools that a frame header sets before its size; skip those before them."""
    bits.read(4)
    if bits.read():  # order hints
        bits.read(2)
    screen = _SELECT if bits.read() else bits.read()
    motion = _SELECT
    if screen:
        motion = _SELECT if bits.read() else bits.read()
    return screen, motion


def _overrides_size(bits: BitReader, sequence: _Sequence) -> bool:
    """Return whether a frame header has a size of its own, instead of the sequence's."""
    if sequence.is_still or bits.read():  # shows an existing frame
        return False
    kind, is_shown = bits.read(2), bits.read()
    if is_shown:
        bits.read(sequence.timing_bits)
    else:
        bits.read()
    if kind != _SWITCH and not (kind == _KEY and is_shown):
        bits.read()  # error resilience
    bits.read()
    screen = bits.read() if sequence.screen_tools == _SELECT else sequence.screen_tools
    if screen and sequence.integer_motion == _SELECT:
        bits.read()
    bits.read(sequence.id_bits)
    return kind == _SWITCH or bool(bits.read())

"""How large the frames of an AV1 stream are, from its headers, before any is decoded."""

from collections.abc import Iterator
from dataclasses import dataclass

from service.imaging.bit_reader import Bits

_SEQUENCE, _FRAME_HEADER, _FRAME = 1, 3, 6  # types of units
_MOST_UNITS = 65_536
_SELECT = 2  # a tool of the sequence that each frame chooses
_KEY, _SWITCH = 0, 3  # types of frames


@dataclass(frozen=True, slots=True)
class _Sequence:
    """What a sequence's header says of its frames, as far as it matters how large they are."""

    width: int
    height: int
    most_width: int  # that a frame may say itself
    most_height: int
    is_still: bool  # with the short header, whose frame is as large as the sequence says
    timing_bits: int
    number_bits: int  # of a frame's number
    screen_tools: int
    integer_motion: int


def frames(data: bytes) -> Iterator[tuple[int, int]]:
    """Give the width and the height that decoding each frame takes at most."""
    sequence = None
    for kind, content in _units(data):
        if kind == _SEQUENCE:
            sequence = _sequence(Bits(content))
        elif kind in {_FRAME_HEADER, _FRAME} and sequence is not None:
            if _says_its_size(Bits(content), sequence):
                yield sequence.most_width, sequence.most_height
            else:
                yield sequence.width, sequence.height


def _units(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Give each unit's type and the start of its content."""
    at = 0
    for _ in range(_MOST_UNITS):
        if at >= len(data):
            return
        head = data[at]
        at += 2 if head & 4 else 1  # with an extension
        size = len(data) - at
        if head & 2:  # it says how long it is
            size = 0
            for place in range(8):
                byte = data[at] if at < len(data) else 0
                size |= (byte & 0x7F) << 7 * place
                at += 1
                if not byte & 0x80:
                    break
        yield head >> 3 & 15, data[at : at + min(size, 512)]
        at += size
    raise ValueError("too many units")


def _sequence(bits: Bits) -> _Sequence:
    bits.read(4)  # profile, still image
    is_still = bool(bits.read())
    timing = 0
    if is_still:
        bits.read(5)
    else:
        timing = _operating_points(bits)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    width, height = bits.read(width_bits) + 1, bits.read(height_bits) + 1
    most = 1 << width_bits, 1 << height_bits
    number_bits = 0
    if not is_still and bits.read():
        number_bits = bits.read(4) + 2
        number_bits += bits.read(3) + 1
    bits.read(3)
    tools = _SELECT, _SELECT
    if not is_still:
        tools = _tools(bits)
    return _Sequence(width, height, *most, is_still, timing, number_bits, *tools)


def _operating_points(bits: Bits) -> int:
    """Read over them; give how many bits of timing a frame's header has."""
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


def _tools(bits: Bits) -> tuple[int, int]:
    """Read over the tools up to those that a frame's header says before its size."""
    bits.read(4)
    if bits.read():  # frames have an order
        bits.read(2)
    screen = _SELECT if bits.read() else bits.read()
    motion = _SELECT
    if screen:
        motion = _SELECT if bits.read() else bits.read()
    return screen, motion


def _says_its_size(bits: Bits, sequence: _Sequence) -> bool:
    """Tell whether a frame says a size of its own, instead of taking the sequence's."""
    if sequence.is_still or bits.read():  # it shows one that is there
        return False
    kind, is_shown = bits.read(2), bits.read()
    if is_shown:
        bits.read(sequence.timing_bits)
    else:
        bits.read()
    if kind != _SWITCH and not (kind == _KEY and is_shown):
        bits.read()  # resilience
    bits.read()
    screen = bits.read() if sequence.screen_tools == _SELECT else sequence.screen_tools
    if screen and sequence.integer_motion == _SELECT:
        bits.read()
    bits.read(sequence.number_bits)
    return kind == _SWITCH or bool(bits.read())

"""A JPEG's segments: which of them change the image, what kind of JPEG it is, where it ends."""

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from random import Random

from service.imaging.sanitized_file import Sanitized, refusal

MOST_MISSING = 16  # bytes of the pixels, beside the end marker
_SHARE_MISSING = 64  # and no more than this part of the last scan
_MOST_SEGMENTS = 4096  # before the pixels
_MOST_PROFILE = 255  # segments
_MOST_SCANS = 100  # of an image whose end is not there

_MARKER = re.compile(rb"\xff[^\x00\xff]", re.DOTALL)
# What ends a scan; libjpeg takes lower markers for damage, and goes on looking behind them.
_IN_SCAN = re.compile(rb"\xff[^\x00-\xbf\xd0-\xd8\xff]", re.DOTALL)
_BARE = {0x01, *range(0xD0, 0xD9)}  # markers without a segment
_APPLICATION = range(0xE0, 0xF0)
_EOI, _SOS, _COMMENT = 0xD9, 0xDA, 0xFE
_ADVICE = "save it as an ordinary JPEG"
_END = bytes([0xFF, _EOI])
_COLOURS = (b"JFIF", b"Adobe")  # application segments that say what the colours are
_EXIF, _PROFILE = b"Exif\0\0", b"ICC_PROFILE\0"

_LOSSLESS = 0xC3
_FRAMES = {  # markers that begin a frame, and what kind of JPEG each makes it
    **dict.fromkeys((0xC0, 0xC1, 0xC2), ""),
    _LOSSLESS: "lossless",
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "hierarchical"),
    **dict.fromkeys((0xC9, 0xCA), "with arithmetic coding"),
    0xCB: "lossless, with arithmetic coding",
    0xF7: "JPEG-LS",
}
_SEQUENTIAL = {0xC0, 0xC1, 0xC3, 0xC9}
_MAYBE = {0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA}  # frames that libjpeg may read
_BITS = 8
_COMPONENTS = (1, 3, 4)
_COEFFICIENTS = 64


@dataclass(frozen=True, slots=True)
class _Frame:
    marker: int = 0
    bits: int = _BITS
    height: int = 1
    width: int = 1
    components: int = 0

    @property
    def variant(self) -> str:
        """Say what kind of JPEG this is, if it is none that every reader reads."""
        said = [_FRAMES.get(self.marker, "")]
        said += [f"{self.bits}-bit"] * (self.bits != _BITS)
        said += [f"{self.components} colour components"] * (self.components not in _COMPONENTS)
        said += ["whose height is said at its end"] * (self.height == 0)
        return ", ".join(filter(None, said))

    @property
    def is_unread(self) -> bool:
        """Tell whether no decoder here reads it."""
        is_usual = self.bits == _BITS and self.components in _COMPONENTS and self.height
        return not (is_usual and self.marker in _MAYBE)


def sanitize(data: bytes) -> Sanitized:
    """Leave out application segments and comments, but for those that change the image.

    Where there is no end marker it is put, and `tail` says how much more may be missing; see
    `endings`. Raises `UnsupportedType` for a kind of JPEG that cannot be read, or `ValueError`.
    """
    view, kept = memoryview(data), [memoryview(data)[:2]]
    at, frame, has_exif = 2, _Frame(), False
    profile: dict[int, bytes] = {}
    for _ in range(_MOST_SEGMENTS):
        found = _MARKER.search(data, at)
        if found is None or data[found.start() + 1] in {_EOI, _SOS}:
            kept.append(view[at:])
            is_all = sum(map(len, kept)) == len(data)  # then spare the copy
            whole = Sanitized(data if is_all else b"".join(kept), profile=_joined(profile))
            return _judged(whole, data, at, frame)
        start, marker = found.start(), data[found.start() + 1]
        at = start + 2 + _length(data, start + 2, marker)
        content = data[start + 4 : min(at, start + 40)]
        if marker in _FRAMES:
            frame = _frame(marker, content)
        if content.startswith(_PROFILE) and len(profile) < _MOST_PROFILE:
            profile[data[start + 16]] = data[start + 18 : at]
        if _is_needed(marker, content, has_exif=has_exif):
            kept.append(view[start:at])
        has_exif |= content.startswith(_EXIF)
    raise ValueError("too many segments")


def endings(data: bytes, tail: int) -> tuple[bytes, bytes]:
    """Give two files that show the same image exactly if `tail` bytes more complete it.

    Behind a complete scan a decoder skips what it finds, whatever it is; an incomplete one goes
    on with it. With restart markers it goes on behind the one that it expects.
    """
    chance = Random(0)

    def noise(size: int) -> bytes:
        return bytes(chance.choices(range(0xFF), k=size))

    cut = data.removesuffix(_END).rstrip(b"\xff") + noise(tail)
    restarts = (bytes([0xFF, marker]) + noise(64) for marker in 2 * (*range(0xD0, 0xD8),))
    return cut + _END, b"".join([cut, noise(1024), *restarts, _END])


def _frame(marker: int, content: bytes) -> _Frame:
    if len(content) < 6:  # noqa: PLR2004 - as far as the number of components
        raise ValueError("no frame")
    bits, height, width, components = struct.unpack_from(">BHHB", content)
    return _Frame(marker, bits, height, width, components)


def _joined(profile: Mapping[int, bytes]) -> bytes:
    """Put the segments of a colour profile together; nothing where one is missing."""
    is_whole = sorted(profile) == list(range(1, len(profile) + 1))
    return b"".join(profile[number] for number in sorted(profile)) if is_whole else b""


def _judged(whole: Sanitized, data: bytes, at: int, frame: _Frame) -> Sanitized:
    """Add what decoding it takes: the passes, the memory and whether its end is there."""
    if frame.marker and frame.is_unread:
        raise refusal("JPEG", frame.variant, _ADVICE)
    scans = islice(_scans(data, at), 1)
    is_one = any(_is_whole(data, scan, frame) for scan in scans)
    starts = list(islice(_scans(data, at), 1 if is_one else None))
    judged = replace(
        whole,
        passes=max(len(starts), 1),
        # Of more scans than one all coefficients are kept, however small the image comes out.
        buffer=(0, 0) if is_one else (frame.width, frame.height),
        variant=frame.variant,
        is_scaled=frame.marker != _LOSSLESS,
    )
    has_end = data.rfind(_END, at) >= 0
    if has_end or len(starts) > _MOST_SCANS or not _is_said(data, starts, frame):
        return judged
    missing = min(MOST_MISSING, (len(data) - starts[-1]) // _SHARE_MISSING)
    # It is decoded three times, twice of them to see that it is whole.
    return replace(judged, data=whole.data + _END, passes=3 * judged.passes, tail=missing)


def _is_needed(marker: int, content: bytes, *, has_exif: bool) -> bool:
    """Say whether a segment changes the image; the EXIF does once."""
    if marker not in _APPLICATION:
        return marker != _COMMENT
    return content.startswith(_COLOURS) or (content.startswith(_EXIF) and not has_exif)


def _scans(data: bytes, at: int) -> Iterator[int]:
    """Find where scans begin up to the end: what comes after may look like scans and is none."""
    while (found := _IN_SCAN.search(data, at)) and (marker := data[found.start() + 1]) != _EOI:
        if marker == _SOS:
            yield found.start()
        at = found.end() + _length(data, found.end(), marker)


def _scanned(data: bytes, at: int) -> int:
    """Read how many colour components a scan has."""
    return data[at + 4] if at + 4 < len(data) else 0


def _is_whole(data: bytes, scan: int, frame: _Frame) -> bool:
    """Tell whether a first scan is the last: the decoder expects the end behind it."""
    return frame.marker in _SEQUENTIAL and 0 < _scanned(data, scan) == frame.components


def _is_said(data: bytes, scans: list[int], frame: _Frame) -> bool:
    """Tell whether the scans that begin say all that there is to say of every component.

    For each it is the bits that are still missing, of each coefficient.
    """
    missing: dict[int, list[int]] = {}
    for at in scans:
        count = _scanned(data, at)
        names = data[at + 5 : at + 5 + 2 * count : 2]
        how = data[at + 5 + 2 * count : at + 8 + 2 * count]
        if len(how) < 3:  # noqa: PLR2004 - first and last coefficient, bits
            return False
        first, last, low = (how[0], how[1], how[2] & 15)
        if frame.marker in _SEQUENTIAL:
            first, last, low = 0, _COEFFICIENTS - 1, 0
        for name in names:
            left = missing.setdefault(name, [_BITS] * _COEFFICIENTS)
            left[first : last + 1] = [low] * max(0, last + 1 - first)
    return len(missing) == frame.components and not any(any(left) for left in missing.values())


def _length(data: bytes, at: int, marker: int) -> int:
    """Read how long a segment is, its length included; at the file's end it is empty."""
    if marker in _BARE or at + 2 > len(data):
        return 0
    return max(int.from_bytes(data[at : at + 2], "big"), 2)

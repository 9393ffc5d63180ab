"""Read a JPEG's segments: drop metadata, detect its variant, its scans and a missing end."""

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from random import Random

from service.imaging.sanitized_file import Sanitized, unsupported

MAX_MISSING = 16  # bytes of pixels, besides the end marker
_MISSING_FRACTION = 64  # of the last scan's length: no more than a 64th may be missing
_MAX_SEGMENTS = 4096  # before the pixels
_MAX_PROFILE = 255  # segments
_MAX_SCANS = 100  # of an image without an end marker

_MARKER = re.compile(rb"\xff[^\x00\xff]", re.DOTALL)
# Markers that end a scan; libjpeg treats lower ones as damage and skips them.
_IN_SCAN = re.compile(rb"\xff[^\x00-\xbf\xd0-\xd8\xff]", re.DOTALL)
_BARE = {0x01, *range(0xD0, 0xD9)}  # markers without a segment
_APPLICATION = range(0xE0, 0xF0)
_EOI, _SOS, _COMMENT = 0xD9, 0xDA, 0xFE
_ADVICE = "save it as an ordinary JPEG"
_END = bytes([0xFF, _EOI])
_COLOURS = (b"JFIF", b"Adobe")  # application segments with the colour space
_EXIF, _PROFILE = b"Exif\0\0", b"ICC_PROFILE\0"

_LOSSLESS = 0xC3
_FRAMES = {  # frame markers, and the JPEG variant of each
    **dict.fromkeys((0xC0, 0xC1, 0xC2), ""),
    _LOSSLESS: "lossless",
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "hierarchical"),
    **dict.fromkeys((0xC9, 0xCA), "with arithmetic coding"),
    0xCB: "lossless, with arithmetic coding",
    0xF7: "JPEG-LS",
}
_SEQUENTIAL = {0xC0, 0xC1, 0xC3, 0xC9}
_MAYBE = {0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA}  # frames that libjpeg may support
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
        """The JPEG's variant in words; empty for one that every decoder supports."""
        parts = [_FRAMES.get(self.marker, "")]
        parts += [f"{self.bits}-bit"] * (self.bits != _BITS)
        parts += [f"{self.components} colour components"] * (self.components not in _COMPONENTS)
        parts += ["with the height at the end"] * (self.height == 0)
        return ", ".join(filter(None, parts))

    @property
    def is_unsupported(self) -> bool:
        """Whether libjpeg cannot decode it."""
        is_usual = self.bits == _BITS and self.components in _COMPONENTS and self.height
        return not (is_usual and self.marker in _MAYBE)


def sanitize(data: bytes) -> Sanitized:
    """Remove the application segments and comments that do not change the image.

    A missing end marker is added, and `tail` set to how many bytes before it may be missing; see
    `endings`. Raises `UnsupportedType` for a variant that cannot be decoded, or `ValueError`.
    """
    view, kept = memoryview(data), [memoryview(data)[:2]]
    offset, frame, has_exif = 2, _Frame(), False
    profile: dict[int, bytes] = {}
    for _ in range(_MAX_SEGMENTS):
        match = _MARKER.search(data, offset)
        if match is None or data[match.start() + 1] in {_EOI, _SOS}:
            kept.append(view[offset:])
            is_all = sum(map(len, kept)) == len(data)  # saves the copy
            clean = Sanitized(data if is_all else b"".join(kept), profile=_joined(profile))
            return _with_cost(clean, data, offset, frame)
        start, marker = match.start(), data[match.start() + 1]
        offset = start + 2 + _length(data, start + 2, marker)
        content = data[start + 4 : min(offset, start + 40)]
        if marker in _FRAMES:
            frame = _frame(marker, content)
        if content.startswith(_PROFILE) and len(profile) < _MAX_PROFILE:
            profile[data[start + 16]] = data[start + 18 : offset]
        if _is_needed(marker, content, has_exif=has_exif):
            kept.append(view[start:offset])
        has_exif |= content.startswith(_EXIF)
    raise ValueError("too many segments")


def endings(data: bytes, tail: int) -> tuple[bytes, bytes]:
    """Return two completed files that decode to the same pixels only if `tail` bytes complete it.

    After a complete scan a decoder skips any bytes; in an incomplete one it decodes them. With
    restart markers it resumes after the marker that it expects.
    """
    random = Random(0)

    def noise(size: int) -> bytes:
        return bytes(random.choices(range(0xFF), k=size))

    cut = data.removesuffix(_END).rstrip(b"\xff") + noise(tail)
    restarts = (bytes([0xFF, marker]) + noise(64) for marker in 2 * (*range(0xD0, 0xD8),))
    return cut + _END, b"".join([cut, noise(1024), *restarts, _END])


def _frame(marker: int, content: bytes) -> _Frame:
    if len(content) < 6:  # noqa: PLR2004 - as far as the number of components
        raise ValueError("no frame")
    bits, height, width, components = struct.unpack_from(">BHHB", content)
    return _Frame(marker, bits, height, width, components)


def _joined(profile: Mapping[int, bytes]) -> bytes:
    """Join the segments of a colour profile; empty if one is missing."""
    is_complete = sorted(profile) == list(range(1, len(profile) + 1))
    return b"".join(profile[number] for number in sorted(profile)) if is_complete else b""


def _with_cost(clean: Sanitized, data: bytes, offset: int, frame: _Frame) -> Sanitized:
    """Add the cost of decoding: passes, memory, and a missing end."""
    if frame.marker and frame.is_unsupported:
        raise unsupported("JPEG", frame.variant, _ADVICE)
    scans = islice(_scans(data, offset), 1)
    is_single = any(_is_only_scan(data, scan, frame) for scan in scans)
    starts = list(islice(_scans(data, offset), 1 if is_single else None))
    file = replace(
        clean,
        passes=max(len(starts), 1),
        # With several scans all coefficients are in memory, even for a downscaled image.
        buffer=(0, 0) if is_single else (frame.width, frame.height),
        variant=frame.variant,
        can_downscale=frame.marker != _LOSSLESS,
    )
    has_end = data.rfind(_END, offset) >= 0
    if has_end or len(starts) > _MAX_SCANS or not _has_all_bits(data, starts, frame):
        return file
    missing = min(MAX_MISSING, (len(data) - starts[-1]) // _MISSING_FRACTION)
    # It is decoded three times: twice to check that it is complete.
    return replace(file, data=clean.data + _END, passes=3 * file.passes, tail=missing)


def _is_needed(marker: int, content: bytes, *, has_exif: bool) -> bool:
    """Return whether a segment changes the image; only the first EXIF does."""
    if marker not in _APPLICATION:
        return marker != _COMMENT
    return content.startswith(_COLOURS) or (content.startswith(_EXIF) and not has_exif)


def _scans(data: bytes, offset: int) -> Iterator[int]:
    """Yield the offsets of scans before the end marker; what follows it is no scan."""
    while (match := _IN_SCAN.search(data, offset)) and (marker := data[match.start() + 1]) != _EOI:
        if marker == _SOS:
            yield match.start()
        offset = match.end() + _length(data, match.end(), marker)


def _scan_components(data: bytes, offset: int) -> int:
    """Return the number of a scan's colour components."""
    return data[offset + 4] if offset + 4 < len(data) else 0


def _is_only_scan(data: bytes, scan: int, frame: _Frame) -> bool:
    """Return whether a first scan is the only one: the decoder expects the end after it."""
    return frame.marker in _SEQUENTIAL and 0 < _scan_components(data, scan) == frame.components


def _has_all_bits(data: bytes, scans: list[int], frame: _Frame) -> bool:
    """Return whether the scans' headers cover every bit of all components' coefficients."""
    missing: dict[int, list[int]] = {}  # per component, the low bits missing of each coefficient
    for offset in scans:
        count = _scan_components(data, offset)
        names = data[offset + 5 : offset + 5 + 2 * count : 2]
        parameters = data[offset + 5 + 2 * count : offset + 8 + 2 * count]
        if len(parameters) < 3:  # noqa: PLR2004 - first and last coefficient, bits
            return False
        first, last, low = parameters[0], parameters[1], parameters[2] & 15
        if frame.marker in _SEQUENTIAL:
            first, last, low = 0, _COEFFICIENTS - 1, 0
        for name in names:
            bits = missing.setdefault(name, [_BITS] * _COEFFICIENTS)
            bits[first : last + 1] = [low] * max(0, last + 1 - first)
    return len(missing) == frame.components and not any(any(bits) for bits in missing.values())


def _length(data: bytes, offset: int, marker: int) -> int:
    """Return a segment's length, with the length field; 0 at the file's end."""
    if marker in _BARE or offset + 2 > len(data):
        return 0
    return max(int.from_bytes(data[offset : offset + 2], "big"), 2)

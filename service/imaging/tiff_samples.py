"""Read the meaning of a TIFF's samples, and refuse variants that cannot be decoded."""

from collections.abc import Collection, Mapping

from service.errors import UnsupportedType
from service.imaging.sanitized_file import Samples, unsupported

Tags = Mapping[int, tuple[int, ...]]
"""Each tag's integers, at least one."""

_DNG, _SUB_DIRECTORIES = 50706, 330
MARKS = {_DNG, _SUB_DIRECTORIES}  # tags whose presence matters, not their values

_CONFIGURATION = 284
_SUBFILE, _BITS, _COMPRESSION, _PHOTOMETRIC, _PER_PIXEL = 254, 258, 259, 262, 277
_PALETTE, _EXTRA, _FORMAT = 320, 338, 339
_EIGHT_BIT = 256  # colours
_REDUCED = 1  # flag of the subfile type: a preview of a larger image in the file
_WHITE_IS_ZERO, _BLACK_IS_ZERO = 0, 1
_INDEXED, _RAW, _PLANAR = 3, 1, 2
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_BYTE, _DEEP = 8, 16

_COLOURS = {0: "grey", 1: "grey", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr"}
_COLOURS |= {8: "LAB", 9: "LAB", 10: "LAB", 32844: "LogL", 32845: "LogLuv"}
_SENSOR = {32803, 34892}  # a camera's own samples
_FORMATS = {1: "", 2: "signed ", 3: "float ", 4: "undefined ", 5: "complex ", 6: "complex float "}
# Raw, fax, LZW, JPEG old and new, deflate, PackBits, LZMA, Zstandard, WebP.
_SUPPORTED = {1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34925, 50000, 50001}
_COMPRESSIONS = {9: "JBIG", 10: "JBIG", 34661: "JBIG", 34712: "JPEG 2000", 34887: "LERC"}
_COMPRESSIONS |= {32771: "CCITT RLE", 32809: "ThunderScan", 34676: "SGI Log", 34677: "SGI Log"}


def check(data: bytes, tags: Tags, present: Collection[int]) -> tuple[Samples, str]:
    """Return the meaning of a TIFF's samples, and its variant in words.

    Raises `UnsupportedType` for a variant that is not decoded, or is decoded wrongly.
    """
    variant = _variant(data, tags)
    photometric = tags.get(_PHOTOMETRIC, (_WHITE_IS_ZERO,))[0]
    is_preview = bool(tags.get(_SUBFILE, (0,))[0] & _REDUCED) and _SUB_DIRECTORIES in present
    if data[8:10] == b"CR" or _DNG in present or is_preview or photometric in _SENSOR:
        raise UnsupportedType("this is a camera's raw file; export it as JPEG")
    if tags.get(_COMPRESSION, (1,))[0] not in _SUPPORTED or _is_misread(data, tags, photometric):
        raise unsupported("TIFF", variant)
    return _samples(tags, photometric), variant


def _is_misread(data: bytes, tags: Tags, photometric: int) -> bool:
    """Return whether Pillow would decode other pixels.

    It does for grey with alpha in separate planes, and for signed or float samples that libtiff
    has already converted to this machine's byte order.
    """
    is_planar = tags.get(_CONFIGURATION, (1,))[0] == _PLANAR
    is_libtiff = is_planar or tags.get(_COMPRESSION, (_RAW,))[0] != _RAW
    is_signed_or_float = (
        tags.get(_FORMAT, (_UNSIGNED,))[0] != _UNSIGNED and tags.get(_BITS, (1,))[0] > _BYTE
    )
    if data.startswith(b"M") and is_libtiff and is_signed_or_float:
        return True
    is_single_channel = photometric in {_WHITE_IS_ZERO, _BLACK_IS_ZERO, _INDEXED}
    return is_planar and is_single_channel and any(tags.get(_EXTRA, ()))


def palette(tags: Tags) -> Tags:
    """Return a 16-bit palette for the 8-bit one that some programs write."""
    colours = tags.get(_PALETTE, ())
    if not colours or max(colours) >= _EIGHT_BIT:
        return {}
    return {_PALETTE: tuple(colour * (_EIGHT_BIT + 1) for colour in colours)}


def _samples(tags: Tags, photometric: int) -> Samples:
    """Return the black and white of grey samples."""
    bits, format_ = tags.get(_BITS, (1,))[0], tags.get(_FORMAT, (_UNSIGNED,))[0]
    if photometric not in {_WHITE_IS_ZERO, _BLACK_IS_ZERO}:
        return Samples(0, (1 << _DEEP) - 1)
    is_inverted = photometric == _WHITE_IS_ZERO and bits > _BYTE  # Pillow inverts smaller ones
    if format_ == _FLOAT:
        return Samples(is_inverted=is_inverted)
    lowest = -(1 << bits - 1) if format_ == _SIGNED and bits > 0 else 0
    if bits <= _BYTE:
        return Samples(offset=-lowest)
    return Samples(lowest, lowest + (1 << min(bits, 64)) - 1, is_inverted=is_inverted)


def _variant(data: bytes, tags: Tags) -> str:
    """Describe a TIFF by its header."""
    bits, photometric = tags.get(_BITS, (1,)), tags.get(_PHOTOMETRIC, (_WHITE_IS_ZERO,))[0]
    depth = "/".join(map(str, bits[:8] if len(set(bits)) > 1 else bits[:1]))
    formats = tags.get(_FORMAT, (_UNSIGNED,))
    format_ = _FORMATS.get(formats[0], "odd ") if len(set(formats)) == 1 else "mixed "
    colours = _COLOURS.get(photometric, f"colours {photometric}")
    order = "big-endian " if data.startswith(b"M") else ""
    parts = [f"{order}{depth}-bit {format_}{colours}"]
    if extra := len(tags.get(_EXTRA, ())):
        parts.append(f"{extra} more channel{'s' * (extra > 1)}")
    if tags.get(_CONFIGURATION, (1,))[0] == _PLANAR:
        parts.append("planar")
    compression = tags.get(_COMPRESSION, (1,))[0]
    if compression not in _SUPPORTED:
        parts.append(_COMPRESSIONS.get(compression, f"compression {compression}"))
    return ", ".join(parts)

"""What the numbers in a TIFF mean, and which kinds of TIFF are read."""

from collections.abc import Collection, Mapping

from service.errors import UnsupportedType
from service.imaging.sanitized_file import Samples, refusal

Tags = Mapping[int, tuple[int, ...]]
"""Whole numbers, by the tag's number; none is empty."""

_DNG, _SUB_DIRECTORIES = 50706, 330
MARKS = {_DNG, _SUB_DIRECTORIES}  # tags that are only looked for

_CONFIGURATION = 284
_SUBFILE, _BITS, _COMPRESSION, _PHOTOMETRIC, _PER_PIXEL = 254, 258, 259, 262, 277
_PALETTE, _EXTRA, _FORMAT = 320, 338, 339
_SHALLOW = 256  # colours of 8 bits
_REDUCED = 1  # of the subfile: another image in the file is the larger one
_WHITE_IS_ZERO, _BLACK_IS_ZERO = 0, 1
_INDEXED, _RAW, _PLANAR = 3, 1, 2
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_BYTE, _DEEP = 8, 16

_COLOURS = {0: "grey", 1: "grey", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr"}
_COLOURS |= {8: "LAB", 9: "LAB", 10: "LAB", 32844: "LogL", 32845: "LogLuv"}
_SENSOR = {32803, 34892}  # a camera's own samples
_FORMATS = {1: "", 2: "signed ", 3: "float ", 4: "undefined ", 5: "complex ", 6: "complex float "}
# Raw, fax, LZW, JPEG old and new, deflate, PackBits, LZMA, Zstandard, WebP.
_READ = {1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34925, 50000, 50001}
_COMPRESSIONS = {9: "JBIG", 10: "JBIG", 34661: "JBIG", 34712: "JPEG 2000", 34887: "LERC"}
_COMPRESSIONS |= {32771: "CCITT RLE", 32809: "ThunderScan", 34676: "SGI Log", 34677: "SGI Log"}


def judge(data: bytes, tags: Tags, present: Collection[int]) -> tuple[Samples, str]:
    """Say what its numbers mean, and of what kind a TIFF is.

    Raises `UnsupportedType` for what is known not to be read, or to be read wrongly.
    """
    variant = _variant(data, tags)
    photometric = tags.get(_PHOTOMETRIC, (_WHITE_IS_ZERO,))[0]
    is_preview = bool(tags.get(_SUBFILE, (0,))[0] & _REDUCED) and _SUB_DIRECTORIES in present
    if data[8:10] == b"CR" or _DNG in present or is_preview or photometric in _SENSOR:
        raise UnsupportedType("this is a camera's raw file; export it as JPEG")
    if tags.get(_COMPRESSION, (1,))[0] not in _READ or _is_misread(data, tags, photometric):
        raise refusal("TIFF", variant)
    return _samples(tags, photometric), variant


def _is_misread(data: bytes, tags: Tags, photometric: int) -> bool:
    """Tell whether Pillow would show another image.

    It does so with one colour and alpha apart, and with signed or float samples whose bytes
    libtiff has put into this machine's order already.
    """
    is_apart = tags.get(_CONFIGURATION, (1,))[0] == _PLANAR
    is_libtiff = is_apart or tags.get(_COMPRESSION, (_RAW,))[0] != _RAW
    is_other = tags.get(_FORMAT, (_UNSIGNED,))[0] != _UNSIGNED and tags.get(_BITS, (1,))[0] > _BYTE
    if data.startswith(b"M") and is_libtiff and is_other:
        return True
    is_one = photometric in {_WHITE_IS_ZERO, _BLACK_IS_ZERO, _INDEXED}
    return is_apart and is_one and any(tags.get(_EXTRA, ()))


def palette(tags: Tags) -> Tags:
    """Give a palette of 16 bits for one that some programs write, of 8 bits."""
    colours = tags.get(_PALETTE, ())
    if not colours or max(colours) >= _SHALLOW:
        return {}
    return {_PALETTE: tuple(colour * (_SHALLOW + 1) for colour in colours)}


def _samples(tags: Tags, photometric: int) -> Samples:
    """Give the black and the white of grey numbers of more than 8 bits."""
    bits, format_ = tags.get(_BITS, (1,))[0], tags.get(_FORMAT, (_UNSIGNED,))[0]
    if photometric not in {_WHITE_IS_ZERO, _BLACK_IS_ZERO}:
        return Samples(0, (1 << _DEEP) - 1)
    is_inverted = photometric == _WHITE_IS_ZERO and bits > _BYTE  # below Pillow does it
    if format_ == _FLOAT:
        return Samples(is_inverted=is_inverted)
    lowest = -(1 << bits - 1) if format_ == _SIGNED and bits > 0 else 0
    if bits <= _BYTE:
        return Samples(offset=-lowest)
    return Samples(lowest, lowest + (1 << min(bits, 64)) - 1, is_inverted=is_inverted)


def _variant(data: bytes, tags: Tags) -> str:
    """Describe a TIFF in the words of its header."""
    bits, photometric = tags.get(_BITS, (1,)), tags.get(_PHOTOMETRIC, (_WHITE_IS_ZERO,))[0]
    depth = "/".join(map(str, bits[:8] if len(set(bits)) > 1 else bits[:1]))
    formats = tags.get(_FORMAT, (_UNSIGNED,))
    format_ = _FORMATS.get(formats[0], "odd ") if len(set(formats)) == 1 else "mixed "
    colours = _COLOURS.get(photometric, f"colours {photometric}")
    order = "big-endian " if data.startswith(b"M") else ""
    said = [f"{order}{depth}-bit {format_}{colours}"]
    if extra := len(tags.get(_EXTRA, ())):
        said.append(f"{extra} more channel{'s' * (extra > 1)}")
    if tags.get(_CONFIGURATION, (1,))[0] == _PLANAR:
        said.append("planar")
    compression = tags.get(_COMPRESSION, (1,))[0]
    if compression not in _READ:
        said.append(_COMPRESSIONS.get(compression, f"compression {compression}"))
    return ", ".join(said)

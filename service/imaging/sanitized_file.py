"""A sanitized image file, with the header fields that Pillow does not expose."""

from dataclasses import dataclass

from service.errors import UnsupportedType


@dataclass(frozen=True, slots=True)
class Samples:
    """The meaning of a grey image's sample values.

    Where black and white are None the image's own minimum and maximum are used: no format defines
    a range for floats.
    """

    black: float | None = None
    white: float | None = None
    is_inverted: bool = False  # the smallest value is white
    offset: int = 0  # added to signed 8-bit values, which Pillow reads as unsigned


@dataclass(frozen=True, slots=True)
class Sanitized:
    """A file without what does not change how the image looks, and the cost of decoding it."""

    data: bytes
    kind: str = ""  # Pillow's name for its format
    buffer: tuple[int, int] = (0, 0)  # width x height that the decoder allocates at the start
    passes: float = 1.0  # how often the decoder goes over the pixels
    pixels: int = 0  # decoded in total, where known
    profile: bytes = b""  # ICC
    variant: str = ""  # a description of the format's variant, where decoders may not support it
    samples: Samples = Samples(0, 65535)
    orientation: int = 1  # of a TIFF; other formats have it in the EXIF
    frame: tuple[int, int, int, int] | None = None  # the box of the canvas that has pixels
    transparent: tuple[int, ...] = ()  # the transparent grey or colour, in the file's samples
    bits: int = 8  # of such a sample
    can_downscale: bool = True  # whether the decoder can decode at a fraction of the size
    tail: int | None = None  # bytes that may be missing before a missing end marker


def unsupported(kind: str, variant: str, advice: str = "save it as PNG or JPEG") -> UnsupportedType:
    """Return the error for an intact file of a format's variant that cannot be decoded."""
    return UnsupportedType(f"a kind of {kind} this service does not read ({variant}); {advice}")

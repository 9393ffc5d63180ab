"""Base64 text to the bytes of an image, since JSON has no bytes."""

import binascii
import re

from service.errors import InvalidParameter

PIECE = 512 * 1024  # characters decoded at once; a multiple of 4

_DATA_URL = "data:"
_MAX_TYPE = 256  # characters of a data URL before its data
_WEB = re.compile(r"https?:", re.IGNORECASE)
_LINK = re.compile(r"(https?|file|blob|ftp|s3|gs):", re.IGNORECASE)


def is_url(value: object) -> bool:
    """Tell whether a value is a URL of the web and no base64."""
    return isinstance(value, str) and _WEB.match(value) is not None


def decode(value: object, name: str) -> bytes:
    """Decode base64 or a data URL, in lines or not; raises `InvalidParameter` with its `name`."""
    if not isinstance(value, str):
        raise InvalidParameter(f"{name} must be a base64 string, as JSON has no bytes")
    if _LINK.match(value):
        raise InvalidParameter(f"{name} is a URL; send the image itself, in base64")
    start = 0
    if value[: len(_DATA_URL)].lower() == _DATA_URL:
        start = value.find(",", 0, _MAX_TYPE) + 1
        if not value[:start].lower().endswith(";base64,"):
            raise InvalidParameter(f"{name} is a data URL without base64; send base64")
    text = value[start:]
    try:
        return _decode_pieces(text)
    except ValueError:  # line breaks, or no base64
        unbroken = "".join(text.split())
    try:
        return _decode_pieces(unbroken)
    except ValueError as error:
        raise InvalidParameter(f"{name} is not base64, as JSON needs it") from error


def _decode_pieces(text: str) -> bytes:
    """Decode base64 without spaces piece by piece, so that other threads run in between."""
    pieces = []
    for start in range(0, len(text), PIECE):
        piece = text[start : start + PIECE]
        pieces.append(binascii.a2b_base64(piece, strict_mode=True))
        if start + PIECE < len(text) and len(pieces[-1]) != len(piece) // 4 * 3:
            raise ValueError("data after the padding")
    return b"".join(pieces)

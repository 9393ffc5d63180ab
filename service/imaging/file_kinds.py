"""Detect a file's format from its first bytes."""

import re

from service.errors import UnsupportedType

ACCEPTED = "JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF"

_SIGNATURES = (  # accepted, by Pillow's names
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"BM", "BMP"),
)
_TO_JPEG = "convert it to JPEG"
_TO_IMAGE = "save it as PNG or JPEG"
_FRAME = "send one frame of it as JPEG"
_PAGE = "send a page of it as PNG or JPEG"
_AS_BYTES = "send the bytes of the image themselves"
_RAW = ("a camera's raw file", "export it as JPEG")

_UNSUPPORTED = (  # signature, name, advice
    (b"\xff\x0a", "JPEG XL", _TO_JPEG),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL", _TO_JPEG),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000", _TO_JPEG),
    (b"\xff\x4f\xff\x51", "JPEG 2000", _TO_JPEG),
    (b"II\xbc\x01", "JPEG XR", _TO_JPEG),
    (b"%PDF-", "PDF", _PAGE),
    (b"%!PS", "PostScript", _PAGE),
    (b"8BPS", "a Photoshop document (PSD)", _TO_IMAGE),
    (b"gimp xcf", "a GIMP document (XCF)", _TO_IMAGE),
    (b"icns", "ICNS (an icon)", _TO_IMAGE),
    (b"qoif", "QOI", _TO_IMAGE),
    (b"DDS ", "DDS (a texture)", _TO_IMAGE),
    (b"v/1\x01", "OpenEXR", _TO_IMAGE),
    (b"#?RADIANCE", "Radiance HDR", _TO_IMAGE),
    (b"SIMPLE  =", "FITS", _TO_IMAGE),
    (b"BPG\xfb", "BPG", _TO_JPEG),
    (b"\x8aMNG", "MNG", _TO_IMAGE),
    (b"AT&TFORM", "DjVu", _PAGE),
    (b"FUJIFILMCCD-RAW", *_RAW),
    (b"IIRO", *_RAW),
    (b"IIRS", *_RAW),
    (b"MMOR", *_RAW),
    (b"IIU\0", *_RAW),
    (b"FOVb", *_RAW),
    (b"\0MRM", *_RAW),
    (b"\x1a\x45\xdf\xa3", "a video (WebM or Matroska)", _FRAME),
    (b"\0\0\1\xba", "a video (MPEG)", _FRAME),
    (b"\0\0\1\xb3", "a video (MPEG)", _FRAME),
    (b"FLV\1", "a video (FLV)", _FRAME),
    (b"PK\3\4", "a ZIP archive", "send the images in it"),
    (b"\x1f\x8b", "compressed by gzip", _AS_BYTES),
    (b"/9j/", "base64", _AS_BYTES),
    (b"iVBORw0KGgo", "base64", _AS_BYTES),
    (b"data:image/", "a data URL", _AS_BYTES),
)
_RIFF = {b"AVI ": ("a video (AVI)", _FRAME), b"WAVE": ("a sound (WAV)", "send an image")}
_MARKUPS = {
    b"svg": ("SVG", "draw it as PNG"),
    b"html": ("a web page (HTML)", "send the image itself, not the page that shows it"),
}
_UNKNOWN = ("", f"not a {ACCEPTED} image")
_AVIF = {b"avif", b"avis"}
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_HEIF = {b"mif1", b"msf1", b"mif2", b"miaf"}
_MAX_BRANDS = 16  # of a file that are read
_ICON = re.compile(rb"\0\0[\1\2]\0[\1-\x40]\0")
_NETPBM = re.compile(rb"P[1-7fF][\s#]")
_MARKUP = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml.{0,512}?)?(?:<!--.{0,512}?-->\s*)*<(?:!doctype\s+)?(svg|html)\b",
    re.IGNORECASE | re.DOTALL,
)
_MARKUP_BYTES = 2048  # that are searched for markup


def sniff(data: bytes, *, heic: bool = False) -> str:
    """Return Pillow's name for an image's format; `heic` accepts HEIC.

    Raises `UnsupportedType`, which names any other format.
    """
    for signature, kind in _SIGNATURES:
        if data.startswith(signature):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp" and not _brands(data).isdisjoint(_AVIF):
        return "AVIF"
    if heic and data[4:8] == b"ftyp" and not _brands(data).isdisjoint(_HEIC):
        return "HEIF"
    name, advice = _unsupported(data)
    raise UnsupportedType(f"this is {name}; {advice}" if name else advice)


def _brands(data: bytes) -> set[bytes]:
    """Read the brands of an ISO base media file: the major one and the compatible ones."""
    end = min(int.from_bytes(data[:4], "big"), len(data), 16 + 4 * _MAX_BRANDS)
    return {data[8:12], *(data[offset : offset + 4] for offset in range(16, end, 4))}


def _unsupported(data: bytes) -> tuple[str, str]:
    """Return the name of an unsupported file's format, and the advice."""
    matches = [entry[1:] for entry in _UNSUPPORTED if data.startswith(entry[0])]
    if data[4:8] == b"ftyp":
        matches.append(_media(_brands(data)))
    if data[:4] == b"RIFF":
        matches.append(_RIFF.get(data[8:12], _UNKNOWN))
    if data[128:132] == b"DICM":
        matches.append(("DICOM", _TO_IMAGE))
    if _ICON.match(data):
        matches.append(("ICO (an icon)", _TO_IMAGE))
    if _NETPBM.match(data):
        matches.append(("Netpbm (PPM, PGM or PBM)", _TO_IMAGE))
    if markup := _MARKUP.match(data[:_MARKUP_BYTES]):
        matches.append(_MARKUPS[markup[1].lower()])
    return matches[0] if matches else _UNKNOWN


def _media(brands: set[bytes]) -> tuple[str, str]:
    if brands & _HEIC:
        return "HEIC, the format of an iPhone's photos", "export it as JPEG"
    if b"crx " in brands:
        return _RAW
    if brands & _HEIF:
        return "HEIF", _TO_JPEG
    return "a video (MP4 or MOV)", _FRAME

"""Unsupported formats are named, with advice."""

import base64
import gzip
import struct
import zlib

import pytest
from mutations import chunk, encoded
from PIL import Image

from service.errors import UnsupportedType
from service.imaging.file_kinds import sniff
from service.imaging.image_decoder import decode


def media(*brands: bytes) -> bytes:
    return (
        struct.pack(">I4s", 12 + 4 * len(brands), b"ftyp")
        + brands[0]
        + bytes(4)
        + b"".join(brands[1:])
    )


HEIC = "this is HEIC, the format of an iPhone's photos; export it as JPEG"
PHOTO = encoded(Image.new("RGB", (8, 8)), "JPEG")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (media(b"heic", b"mif1", b"heic"), HEIC),
        (media(b"mif1", b"heic"), HEIC),
        (media(b"msf1", b"hevc"), HEIC),
        (media(b"mif1", b"miaf"), "this is HEIF; convert it to JPEG"),
        (media(b"crx ", b"isom"), "this is a camera's raw file; export it as JPEG"),
        (media(b"isom", b"mp42"), "this is a video (MP4 or MOV); send one frame of it as JPEG"),
        (media(b"qt  "), "this is a video (MP4 or MOV); send one frame of it as JPEG"),
        (b"\x1a\x45\xdf\xa3" + bytes(20), "this is a video (WebM or Matroska)"),
        (b"RIFF\0\0\0\0AVI LIST", "this is a video (AVI)"),
        (b"RIFF\0\0\0\0WAVEfmt ", "this is a sound (WAV)"),
        (b"\xff\x0a" + bytes(9), "this is JPEG XL; convert it to JPEG"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "this is JPEG XL; convert it to JPEG"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "this is JPEG 2000; convert it to JPEG"),
        (b"\xff\x4f\xff\x51\0", "this is JPEG 2000; convert it to JPEG"),
        (b"%PDF-1.7", "this is PDF; send a page of it as PNG or JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "this is PostScript; send a page of it as PNG or JPEG"),
        (b"8BPS\0\1", "this is a Photoshop document (PSD); save it as PNG or JPEG"),
        (b"\0\0\1\0\1\0\x10\x10", "this is ICO (an icon); save it as PNG or JPEG"),
        (b"FUJIFILMCCD-RAW 0201", "this is a camera's raw file; export it as JPEG"),
        (b"IIU\0\x18\0\0\0", "this is a camera's raw file; export it as JPEG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "this is SVG; draw it as PNG"),
        (b"\xef\xbb\xbf <?xml version='1.0'?>\n<!-- a -->\n<svg>", "this is SVG; draw it as PNG"),
        (b"<?xml version='1.0'?><!DOCTYPE svg PUBLIC ''>", "this is SVG; draw it as PNG"),
        (b"<!DOCTYPE html><html>", "this is a web page (HTML); send the image itself"),
        (b"\n<HTML>", "this is a web page (HTML); send the image itself"),
        (bytes(128) + b"DICM", "this is DICOM; save it as PNG or JPEG"),
        (b"P6\n2 2\n255\n", "this is Netpbm (PPM, PGM or PBM); save it as PNG or JPEG"),
        (b"PK\3\4", "this is a ZIP archive; send the images in it"),
        (gzip.compress(PHOTO), "this is compressed by gzip; send the bytes of the image"),
        (base64.b64encode(PHOTO), "this is base64; send the bytes of the image themselves"),
        (b"data:image/png;base64,AAAA", "this is a data URL; send the bytes of the image"),
    ],
)
def test_a_format_that_is_not_accepted_is_named(data: bytes, sentence: str) -> None:
    with pytest.raises(UnsupportedType) as caught:
        decode(data, max_pixels=1000)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    "data",
    [b"", b"a", b"{}", b"<a>svg</a>", b"RIFF\0\0\0\0ACON", bytes(200), b"\0\0\2\0" + bytes(20)],
)
def test_an_unknown_format_is_not_guessed(data: bytes) -> None:
    with pytest.raises(UnsupportedType) as caught:
        sniff(data)
    assert str(caught.value) == "not a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF image"


@pytest.mark.parametrize(
    "brands", [(b"avif",), (b"mif1", b"miaf", b"avif"), (b"avis", b"msf1"), (b"heic", b"avif")]
)
def test_an_avif_is_one_by_any_of_its_brands(brands: tuple[bytes, ...]) -> None:
    assert sniff(media(*brands)) == "AVIF"


def test_brands_end_where_their_box_ends() -> None:
    with pytest.raises(UnsupportedType, match="HEIC"):
        sniff(media(b"heic", b"mif1") + b"avifavif")


def bmp(bits: int, compression: int, masks: tuple[int, int, int]) -> bytes:
    """Write a BMP of 2 x 2 with colour masks."""
    head = struct.pack("<IiiHHIIiiII", 40, 2, 2, 1, bits, compression, 16, 1, 1, 0, 0)
    start = 14 + len(head) + 12
    body = head + struct.pack("<III", *masks) + bytes(16)
    return b"BM" + struct.pack("<IHHI", 14 + len(body), 0, 0, start) + body


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (bmp(16, 3, (0xF00, 0xF0, 0xF)), "16 bits a pixel, bit masks, F00/F0/F"),
        (bmp(24, 4, (0, 0, 0)), "24 bits a pixel, JPEG"),
        (bmp(24, 9, (0, 0, 0)), "24 bits a pixel, compression 9"),
        (bmp(64, 0, (0, 0, 0)), "64 bits a pixel"),
        (b"BM" + bytes(12) + struct.pack("<I", 16) + bytes(40), "a header of 16 bytes"),
    ],
)
def test_a_whole_bmp_of_a_kind_that_is_not_read_is_not_called_broken(
    data: bytes, said: str
) -> None:
    with pytest.raises(UnsupportedType) as caught:
        decode(data, max_pixels=1000)
    assert str(caught.value) == (
        f"a kind of BMP this service does not read ({said}); save it as PNG or JPEG"
    )


def test_a_png_of_an_ios_app_is_named() -> None:
    pixels = zlib.compress(b"\0\1\2\3", wbits=-15)
    chunks = chunk(b"CgBI", bytes(4)) + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    with pytest.raises(UnsupportedType, match=r"a kind of PNG .* CgBI"):
        decode(data, max_pixels=1000)

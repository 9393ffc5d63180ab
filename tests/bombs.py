"""Decompression bombs: small files that are costly to decode, by name."""

import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping

import numpy as np
from mutations import (
    ORIENTATION,
    bmp_rle,
    chunk,
    claiming,
    encoded,
    good,
    photo,
    segment,
    segments,
    sized,
    tiff,
)
from PIL import Image

SOME = 2_000_000  # bytes, below the service's limit
EMPTY_SCAN = segment(0xDA, b"\1\1\0\1\5\2")  # of the first component, without data
NOTHING = b"\0\0\0\xff\xff"  # an empty block of deflate


def scans(width: int, height: int, count: int) -> bytes:
    """Make a progressive JPEG with empty scans, each a pass over all pixels."""
    data = encoded(Image.new("RGB", (width, height)), "JPEG", progressive=True)
    end = data.rindex(b"\xff\xd9")
    return data[:end] + EMPTY_SCAN * count + data[end:]


def hidden_scans(width: int, height: int, count: int) -> bytes:
    """Make such a JPEG whose scans are inside the segment of an invalid marker."""
    data = scans(width, height, count)
    first = data.index(b"\xff\xda")
    restarts = segment(0xDD, struct.pack(">H", 1))  # libjpeg then resumes after the damage
    end = first + 2 + int.from_bytes(data[first + 2 : first + 4], "big")
    hiding = b"\xff\x02\xfe\xfe"
    return data[:first] + restarts + data[first:end] + hiding + data[end:]


def rationals(count: int) -> bytes:
    """Make an EXIF block whose orientation is `count` fractions."""
    entry = struct.pack("<HHII", ORIENTATION, 5, count, 26)
    return b"II*\0\x08\0\0\0\1\0" + entry + bytes(4) + b"\1\0\0\0\3\0\0\0" * count


def shared_tags(*, big: bool) -> bytes:
    """Make a TIFF with thousands of tags that all point to the same millions of bytes."""
    pixels = zlib.compress(bytes(100))
    tags = {40_000 + number: (1, SOME, 0) for number in range(4000)}
    plain = {259: 8, 273: 8, 278: 10, 279: len(pixels)}
    return tiff({**plain, **tags}, pixels + bytes(SOME), big=big)


def overlapping_strips(count: int) -> bytes:
    """Make a TIFF whose strips are all the same megabytes of deflate, for a pixel each."""
    squeeze = zlib.compressobj(wbits=-15)
    last = squeeze.compress(b"\0") + squeeze.flush()
    strip = b"\x78\x9c" + NOTHING * (SOME // 5) + last + struct.pack(">I", zlib.adler32(b"\0"))
    tags = {
        256: 1,
        257: count,
        259: 8,
        278: 1,
        273: (4, count, len(strip)),
        279: (4, count, len(strip) + 4 * count),
    }
    start = 8 + 2 + 12 * 9 + 4
    offsets = struct.pack(f"<{count}I", *[start] * count)
    return tiff(tags, strip + offsets + struct.pack(f"<{count}I", *[len(strip)] * count))


def raw_strips(count: int) -> bytes:
    """Make a TIFF of `count` rows, each a strip at the same offset."""
    tags = {256: 1, 257: count, 278: 1, 273: (4, count, 0), 279: 1}
    return tiff(tags, struct.pack("<I", 200) * count)


def jpeg_in_tiff(count: int) -> bytes:
    """Make a TIFF with a progressive JPEG of `count` scans."""
    grey = encoded(Image.new("L", (1000, 1000)), "JPEG", progressive=True)
    end = grey.rindex(b"\xff\xd9")
    data = grey[:end] + EMPTY_SCAN * count + grey[end:]
    tags = {256: 1000, 257: 1000, 259: 7, 278: 1000, 279: len(data), 273: 8 + 2 + 12 * 9 + 4}
    return tiff(tags, data)


def big_dictionary() -> bytes:
    """Make a TIFF in LZMA with a dictionary of 3 GiB for 100 pixels."""
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]
    data = bytearray(lzma.compress(bytes(100), check=lzma.CHECK_NONE, filters=filters))
    data[data.index(b"\x21\x01") + 2] = 39
    end = 12 + 4 * (data[12] + 1)
    data[end - 4 : end] = struct.pack("<I", zlib.crc32(bytes(data[12 : end - 4])))
    return tiff({259: 34_925, 278: 10, 279: len(data), 273: 8 + 2 + 12 * 9 + 4}, bytes(data))


def many_chunks(each: bytes, count: int) -> bytes:
    """Insert a chunk `count` times into a PNG, before its pixels."""
    data = encoded(Image.new("L", (10, 10)), "PNG")
    return data[:33] + each * count + data[33:]


def fractions_in_webp() -> bytes:
    """Give a WebP an EXIF block that no JPEG could hold."""
    exif = b"Exif\0\0" + rationals(SOME // 8)
    return encoded(Image.new("RGB", (10, 10)), "WEBP", exif=exif)


def fractions_in_tiff() -> bytes:
    """Give a TIFF a second directory, that of EXIF, with half a million fractions."""
    count = SOME // 8
    content = bytes(100) + struct.pack("<HHHII", 1, 33_434, 5, count, 400) + bytes(4)
    return tiff({273: 122 + 12, 279: 100, 0x8769: 122 + 12 + 100}, content + bytes(8 * count + 300))


def gif(size: tuple[int, int], frame: tuple[int, int, int, int], before: bytes = b"") -> bytes:
    """Make a GIF of one frame (left, top, width, height) without pixels."""
    head = b"GIF89a" + struct.pack("<HHBBB", *size, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return head + before + b"," + struct.pack("<HHHHB", *frame, 0) + b"\2\2\x4c\1\0;"


def frames(kind: str, count: int) -> bytes:
    """Make an animation of `count` frames of one pixel."""
    pixels = [Image.new("RGB", (1, 1), (n % 256, n // 256, 0)) for n in range(count)]
    return encoded(pixels[0], kind, save_all=True, append_images=pixels[1:])


def with_zip() -> bytes:
    """Make a JPEG that is also a ZIP archive."""
    archive = io.BytesIO(encoded(Image.new("RGB", (10, 10)), "JPEG"))
    with zipfile.ZipFile(archive, "a") as written:
        written.writestr("bomb", bytes(SOME), zipfile.ZIP_DEFLATED)
    return archive.getvalue()


def deep_png() -> bytes:
    """Make a PNG of 16 bits a colour, one of which is transparent."""
    data = io.BytesIO()
    rows = zlib.compress(bytes(1 + 6 * 2000) * 2000)
    data.write(b"\x89PNG\r\n\x1a\n")
    data.write(chunk(b"IHDR", struct.pack(">IIBBBBB", 2000, 2000, 16, 2, 0, 0, 0)))
    data.write(chunk(b"tRNS", bytes(6)) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    return data.getvalue()


def planar_tiff() -> bytes:
    """Make an uncompressed TIFF in planes."""
    plane = 2 * 500 * 500
    start = 8 + 2 + 12 * 11 + 4
    shorts, longs = struct.pack("<3H", 16, 16, 16), struct.pack("<3I", *[plane] * 3)
    starts = struct.pack("<3I", *(start + 30 + plane * at for at in range(3)))
    tags = {
        256: 500,
        257: 500,
        258: (3, 3, 0),
        262: 2,
        277: 3,
        278: 500,
        284: 2,
        273: (4, 3, 6),
        279: (4, 3, 18),
        339: 1,
    }
    return tiff(tags, shorts + starts + longs + bytes(3 * plane))


def large_avif_frames() -> bytes:
    """Make an AVIF of 4000 x 4000 whose header has 10 x 10."""
    data = bytearray(encoded(Image.new("RGB", (4000, 4000)), "AVIF", speed=10))
    at = data.index(b"ispe") + 8
    data[at : at + 8] = struct.pack(">II", 10, 10)
    return bytes(data)


def fractions_in_avif() -> bytes:
    """Give an AVIF an EXIF block whose orientation is very many fractions."""
    orientation, other = (struct.pack("<HH", tag, 5) for tag in (ORIENTATION, ORIENTATION - 1))
    exif = b"Exif\0\0" + rationals(SOME // 8).replace(orientation, other, 1)
    data = encoded(Image.new("RGB", (64, 64)), "AVIF", exif=exif)
    return data.replace(other, orientation, 1)


def without_end(kind: Mapping[str, bool]) -> bytes:
    """Make a JPEG without its end marker."""
    return encoded(Image.new("RGB", (2000, 2000)), "JPEG", **kind)[:-2]


def wide_web_canvas() -> bytes:
    """Make a WebP header of 16 million pixels squared."""
    body = b"WEBPVP8X" + struct.pack("<II", 10, 0) + b"\xff\xff\xff" * 2
    return b"RIFF" + struct.pack("<I", len(body)) + body


BOMBS: Mapping[str, Callable[[], bytes]] = {
    "JPEG of 100,000 scans": lambda: scans(1000, 1000, 100_000),
    "JPEG of scans behind what is no marker": lambda: hidden_scans(5000, 5000, 6000),
    "JPEG of 16 scans": lambda: scans(1000, 1000, 6),
    "JPEG that claims 65500 x 65500": lambda: claiming(good()[0], 65_500, 65_500),
    "JPEG of very many EXIF segments": lambda: segments(
        good()[0], segment(0xE1, b"Exif\0\0") * (SOME // 10)
    ),
    "JPEG of very many comments": lambda: segments(good()[0], segment(0xFE, b"") * (SOME // 4)),
    "JPEG of 60 large EXIF segments": lambda: segments(
        good()[0], segment(0xE1, b"Exif\0\0" + rationals(8000)) * 60
    ),
    "JPEG with fractions for an orientation": lambda: segments(
        good()[6], segment(0xE1, b"Exif\0\0" + rationals(8000))
    ),
    "JPEG behind zeros": lambda: segments(good()[0], segment(0xFE, b"") + bytes(SOME)),
    "JPEG behind fill bytes": lambda: segments(good()[0], b"\xff" * SOME),
    "JPEG behind restart markers": lambda: segments(good()[0], b"\xff\xd0" * (SOME // 2)),
    "JPEG with a large index of images": lambda: segments(
        good()[0],
        segment(0xE2, b"MPF\0II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 0xB001, 4, 1, 1 << 31)),
    ),
    "JPEG and ZIP": with_zip,
    "PNG of one colour": lambda: encoded(Image.new("RGB", (4000, 4000)), "PNG", compress_level=9),
    "PNG that claims 2^31 - 1 squared": lambda: claiming(good()[1], 2**31 - 1, 2**31 - 1),
    "PNG of 1000 colour profiles": lambda: many_chunks(
        chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1 << 20), 9)), 1000
    ),
    "PNG of 1000 texts": lambda: many_chunks(
        chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 20), 9)), 1000
    ),
    "PNG of 160,000 empty chunks": lambda: many_chunks(chunk(b"prVt", b""), SOME // 12),
    "PNG of 60,000 empty pieces": lambda: many_chunks(chunk(b"IDAT", b""), 60_000),
    "PNG with fractions for an orientation": lambda: many_chunks(
        chunk(b"eXIf", rationals(SOME // 8)), 1
    ),
    "PNG of 300 frames": lambda: frames("PNG", 300),
    "WebP of one colour": lambda: encoded(Image.new("RGB", (4000, 4000)), "WEBP", method=0),
    "WebP that claims 2^24 squared": wide_web_canvas,
    "WebP with fractions for an orientation": fractions_in_webp,
    "WebP of 300 frames": lambda: frames("WEBP", 300),
    "GIF of one colour": lambda: encoded(Image.new("L", (4000, 4000)), "GIF"),
    "GIF that claims 65535 x 65535": lambda: claiming(good()[3], 65_535, 65_535),
    "GIF whose frame is larger": lambda: gif((1, 1), (0, 0, 12_000, 12_000)),
    "GIF whose frame lies outside": lambda: gif((1, 1), (60_000, 60_000, 5, 5)),
    "GIF of very many comments": lambda: gif((1, 1), (0, 0, 1, 1), b"!\xfe\1a\0" * (SOME // 5)),
    "GIF of a long comment": lambda: gif(
        (1, 1), (0, 0, 1, 1), b"!\xfe" + b"\1a" * (SOME // 2) + b"\0"
    ),
    "GIF of 3000 frames": lambda: frames("GIF", 3000),
    "BMP that claims 2^31 - 1 squared": lambda: claiming(good()[4], 2**31 - 1, 2**31 - 1),
    "BMP that stands on its head": lambda: claiming(good()[4], 20, 2**32 - 12),
    "BMP of the least height": lambda: claiming(good()[4], 1, 2**31),
    "BMP of one empty row": lambda: bmp_rle(10_000_000, 1, b"\1\1\0\0\0\1"),
    "BMP of very many jumps": lambda: bmp_rle(1000, 1000, b"\0\2\0\0" * (SOME // 4)),
    "BMP of very many runs": lambda: bmp_rle(5000, 5000, b"\1\1" * (SOME // 2)),
    "TIFF of 4000 tags for the same bytes": lambda: shared_tags(big=False),
    "BigTIFF of 4000 tags for the same bytes": lambda: shared_tags(big=True),
    "TIFF of 100 strips in the same place": lambda: overlapping_strips(100),
    "TIFF of very many rows in the same place": lambda: raw_strips(SOME // 4),
    "TIFF with a tile of 40000 x 40000": lambda: tiff(
        {259: 8, 322: 40_000, 323: 40_000, 324: 8, 325: 20}, bytes(100)
    ),
    "TIFF with tiles of no width": lambda: tiff({259: 8, 322: 0, 323: 16, 324: 8, 325: 20}),
    "TIFF of fractions": lambda: tiff({282: (5, SOME // 8, 0), 273: 8, 279: 100}, bytes(SOME)),
    "TIFF with fractions in its EXIF": fractions_in_tiff,
    "TIFF with a JPEG of 1000 scans": lambda: jpeg_in_tiff(1000),
    "TIFF with a dictionary of 3 GiB": big_dictionary,
    "TIFF that points to itself": lambda: tiff({273: 8, 279: 100, 0x8769: 8, 330: 8}, bytes(100)),
    "TIFF of one colour": lambda: encoded(
        Image.new("L", (4000, 4000)), "TIFF", compression="tiff_adobe_deflate"
    ),
    "PNG with a profile of a gigabyte": lambda: many_chunks(
        chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1 << 30), 1)), 1
    ),
    "PNG of 16 bits with a transparent colour": deep_png,
    "JPEG without an end": lambda: without_end({}),
    "JPEG of scans without an end": lambda: without_end({"progressive": True}),
    "JPEG of 300 megapixels": lambda: claiming(
        encoded(Image.new("RGB", (64, 64)), "JPEG"), 20_000, 15_000
    ),
    "TIFF of colours apart": planar_tiff,
    "AVIF that claims 16000 x 16000": lambda: sized(encoded(photo(), "AVIF"), 16_000, 16_000),
    "AVIF of one colour": lambda: encoded(Image.new("RGB", (4000, 4000)), "AVIF", speed=10),
    "AVIF of larger frames than it says": large_avif_frames,
    "AVIF with fractions for an orientation": fractions_in_avif,
    "AVIF of 30 frames": lambda: frames("AVIF", 30),
    "TIFF of floats": lambda: encoded(
        Image.fromarray(np.zeros((2000, 2000), np.float32)), "TIFF", compression="tiff_lzw"
    ),
}

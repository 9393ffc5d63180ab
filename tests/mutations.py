"""Mutated images from a seed, and helpers that write files byte by byte.

All functions are pure, so a failure can be reproduced from its seed.
"""

import io
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from random import Random

import numpy as np
from PIL import Image

KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
ORIENTATION = 0x0112
ODD = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)

Mutation = Callable[[bytes, Random, Sequence[bytes]], bytes]


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """Write an image as Pillow does."""
    file = io.BytesIO()
    image.copy().save(file, kind, **options)  # a copy, as saving changes the image
    return file.getvalue()


def photo(width: int = 60, height: int = 40) -> Image.Image:
    """Make an image of smooth colours, of which lossy formats keep nearly everything."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def difference(first: Image.Image, second: Image.Image) -> float:
    """Compute the mean difference of two images, in grey levels."""
    return float(np.abs(np.asarray(first, np.int16) - np.asarray(second, np.int16)).mean())


def chunk(name: bytes, content: bytes) -> bytes:
    """Write a PNG chunk."""
    check = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + check


@cache
def good() -> tuple[bytes, ...]:
    """Return small images of all formats, modes and compressions with separate decoder code."""
    noise = np.random.default_rng(0).integers(0, 255, (12, 20, 3), np.uint8)
    image = Image.fromarray(noise)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    turned = {kind: {"exif": exif} for kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")}
    grey = image.convert("L")
    return (
        *(encoded(image, kind, **turned.get(kind, {})) for kind in KINDS if kind != "AVIF"),
        encoded(image, "JPEG", progressive=True, comment=b"a comment", dpi=(72, 72)),
        encoded(image.convert("CMYK"), "JPEG"),
        encoded(image, "MPO", save_all=True, append_images=[image.rotate(180)]),
        encoded(image.convert("RGBA"), "PNG"),
        encoded(image.quantize(8), "PNG", transparency=0),
        encoded(Image.fromarray(noise[:, :, 0].astype(np.uint16) * 257), "PNG"),
        *(
            encoded(image, kind, save_all=True, append_images=[image.rotate(180)])
            for kind in ("PNG", "GIF", "WEBP", "TIFF")
        ),
        encoded(image.convert("RGBA"), "WEBP", lossless=True),
        encoded(image.quantize(8), "BMP"),
        encoded(grey.convert("1"), "BMP"),
        bmp_rle(20, 12),
        *(
            encoded(image, "TIFF", compression=name)
            for name in ("jpeg", "packbits", "tiff_adobe_deflate", "tiff_lzw", "zstd", "lzma")
        ),
        encoded(grey.convert("1"), "TIFF", compression="group4"),
        encoded(grey.convert("F"), "TIFF"),
        encoded(image, "TIFF", big_tiff=True),
        encoded(image.convert("YCbCr"), "TIFF"),
        encoded(image.quantize(8), "TIFF"),
        tiff({322: 16, 323: 16, 324: 200, 325: 256, 256: 16, 257: 16}, bytes(512)),
        encoded(image, "AVIF", **turned["AVIF"]),
        encoded(image.convert("RGBA"), "AVIF", icc_profile=bytes(128)),
        encoded(image, "AVIF", save_all=True, append_images=[image.rotate(180)]),
    )


# Mutations: each takes an image, a random generator, and images to take parts of.


def flip(data: bytes, chance: Random, _: Sequence[bytes]) -> bytes:
    """Change a few bytes, more of them near the start, where the headers are."""
    changed = bytearray(data)
    for _time in range(chance.randint(1, 8)):
        changed[_place(data, chance)] = chance.choice(
            (0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256))
        )
    return bytes(changed)


def cut(data: bytes, chance: Random, _: Sequence[bytes]) -> bytes:
    """Truncate, or remove a part."""
    start, end = sorted((_place(data, chance), chance.randrange(len(data))))
    return data[:end] if chance.random() < 0.5 else data[:start] + data[end:]


def splice(data: bytes, chance: Random, others: Sequence[bytes]) -> bytes:
    """Join the beginning of one image and the end of another."""
    other = chance.choice(others)
    return data[: _place(data, chance)] + other[_place(other, chance) :]


def stretch(data: bytes, chance: Random, _: Sequence[bytes]) -> bytes:
    """Overwrite a number, which may be a length or an offset."""
    letter = chance.choice(["<H", ">H", "<I", ">I"])
    at, size = _place(data, chance), struct.calcsize(letter)
    value = chance.choice((*ODD, len(data), len(data) - 1)) & (1 << 8 * size) - 1
    return data[:at] + struct.pack(letter, value) + data[at + size :]


def repeat(data: bytes, chance: Random, _: Sequence[bytes]) -> bytes:
    """Repeat a part, up to a few hundred times."""
    start = _place(data, chance)
    part = data[start : start + chance.randint(1, 40)]
    return data[:start] + part * (1 << chance.randint(1, 8)) + data[start:]


def insert(data: bytes, chance: Random, others: Sequence[bytes]) -> bytes:
    """Insert a part of an image, a segment or noise."""
    at, other = _place(data, chance), chance.choice(others)
    pieces = (
        other[_place(other, chance) :][: chance.randint(1, 64)],
        b"\xff" + bytes([chance.randrange(0xC0, 0xFF)]) + struct.pack(">H", chance.randrange(64)),
        chunk(chance.choice((b"tRNS", b"PLTE", b"eXIf", b"fcTL", b"zTXt")), chance.randbytes(8)),
        chance.randbytes(chance.randint(1, 64)),
    )
    return data[:at] + chance.choice(pieces) + data[at:]


def resize(data: bytes, chance: Random, _: Sequence[bytes]) -> bytes:
    """Write another size into the header, if its offset is known."""
    width, height = (chance.choice((*ODD, chance.randrange(1, 5000))) for _side in "wh")
    return claiming(data, width, height)


MUTATIONS: tuple[Mutation, ...] = (flip, cut, splice, stretch, repeat, insert, resize)


def mutated(seed: int, images: Sequence[bytes]) -> bytes:
    """Mutate one of the images up to three times, by the seed."""
    chance = Random(seed)
    data = chance.choice(images)
    for _ in range(chance.choice((1, 1, 1, 2, 2, 3))):
        if data:
            data = chance.choice(MUTATIONS)(data, chance, images)
    return data


def _place(data: bytes, chance: Random) -> int:
    return int(chance.random() ** 2 * len(data))


def claiming(data: bytes, width: int, height: int) -> bytes:
    """Write another size into an image's header, if its offset is known."""
    at, form, check = _size_field(data)
    if at < 0 or at + struct.calcsize(form) > len(data):
        return data
    most = 0xFFFFFFFF if "I" in form else 0xFFFF
    sides = (height, width) if data.startswith(b"\xff\xd8") else (width, height)
    changed = bytearray(data)
    struct.pack_into(form, changed, at, *(side & most for side in sides))
    if check:
        changed[29:33] = struct.pack(">I", zlib.crc32(changed[12:29]))
    return bytes(changed)


def _size_field(data: bytes) -> tuple[int, str, bool]:
    """Return the offset and format of an image's size, and whether a PNG checksum covers it."""
    if data.startswith(b"\x89PNG"):
        return (16, ">II", True) if len(data) > 33 else (-1, "", False)
    if data.startswith(b"GIF8"):
        return 6, "<HH", False
    if data.startswith(b"BM"):
        return 18, "<II", False
    if data[12:16] in {b"VP8 ", b"VP8X"}:
        return (26, "<HH", False) if data[12:16] == b"VP8 " else (24, "<HxH", False)
    frame = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    return (frame + 5 if frame >= 0 and data.startswith(b"\xff\xd8") else -1), ">HH", False


# Files that Pillow would not write.

Tag = int | tuple[int, int, int]
GREY = {256: 10, 257: 10, 258: 8, 259: 1, 262: 1, 277: 1}  # 10 x 10, raw


def tiff(tags: Mapping[int, Tag], content: bytes = b"", *, big: bool = False) -> bytes:
    """Write a grey TIFF: each tag is a LONG, or a type, a count and an offset in the content.

    The content follows the directory.
    """
    entries: dict[int, Tag] = {**GREY, **tags}
    head = b"II+\0\x08\0\0\0" + struct.pack("<Q", 16) if big else b"II*\0\x08\0\0\0"
    entry, count, end = ("<HHQQ", "<Q", bytes(8)) if big else ("<HHII", "<H", bytes(4))
    head += struct.pack(count, len(entries))
    behind = len(head) + struct.calcsize(entry) * len(entries) + len(end)
    for tag, value in sorted(entries.items()):
        kind, values, place = (4, 1, value - behind) if isinstance(value, int) else value
        head += struct.pack(entry, tag, kind, values, behind + place)
    return head + end + content


def bmp_rle(width: int, height: int, content: bytes | None = None) -> bytes:
    """Write a BMP in RLE8; without content, of one colour in rows."""
    if content is None:
        content = (bytes([width, 1]) + b"\0\0") * height + b"\0\1"
    palette = bytes(range(256)) * 4
    info = struct.pack("<IIIHHIIIIII", 40, width, height, 1, 8, 1, len(content), 1, 1, 256, 0)
    start = 14 + len(info) + len(palette)
    head = b"BM" + struct.pack("<IHHI", start + len(content), 0, 0, start)
    return head + info + palette + content


def box(name: bytes, content: bytes) -> bytes:
    """Write a box of HEIC and AVIF."""
    return struct.pack(">I4s", 8 + len(content), name) + content


def sized(data: bytes, width: int, height: int) -> bytes:
    """Change the size that the boxes of a HEIC or AVIF state."""
    changed = bytearray(data)
    struct.pack_into(">II", changed, data.index(b"ispe") + 8, width, height)
    return bytes(changed)


def segments(data: bytes, content: bytes) -> bytes:
    """Insert content after a JPEG's first marker."""
    return data[:2] + content + data[2:]


def segment(marker: int, content: bytes) -> bytes:
    """Write a JPEG segment."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content

"""HEIC, with the extra that reads it: off by default, bounded as the others are."""

import contextlib
import io
import struct
import sys
from types import ModuleType
from typing import Any

import pytest
from mutations import box, difference, mutated, photo, sized
from PIL import Image

from service.errors import ServiceError, TooLarge, UnreadableImage, UnsupportedType, WrongOption
from service.imaging import heif, hevc
from service.imaging.bit_reader import BitReader
from service.imaging.image_decoder import decode
from service.serving.factory import create_served_model
from service.settings import Settings

LIMIT = 1_000_000


@pytest.fixture(scope="module")
def library() -> ModuleType:
    return pytest.importorskip("pillow_heif")


def written(library: ModuleType, image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    library.from_pillow(image).save(file, quality=90, **options)
    return file.getvalue()


def shown(data: bytes, max_pixels: int = LIMIT) -> Image.Image:
    return decode(data, max_pixels=max_pixels, heic=True)


def test_it_is_off_by_default(library: ModuleType) -> None:
    with pytest.raises(UnsupportedType, match="this is HEIC, the format"):
        decode(written(library, photo()), max_pixels=LIMIT)
    assert not Settings().heic


def test_it_is_decoded_where_it_is_on(library: ModuleType) -> None:
    assert difference(shown(written(library, photo())), photo()) < 8
    image = decode(written(library, photo()), max_pixels=LIMIT, min_side=8, heic=True)
    assert image.size == (60, 40)


def test_alpha_goes_over_white(library: ModuleType) -> None:
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    assert shown(written(library, image)).getpixel((9, 9)) == (255, 255, 255)


def test_tiles_count_and_make_one_image(library: ModuleType) -> None:
    library.options.GRID_TILE_SIZE = 64
    try:
        data = written(library, photo(256, 128))
    finally:
        library.options.GRID_TILE_SIZE = 0
    sanitized = heif.sanitize(data)
    assert (sanitized.buffer, sanitized.pixels) == ((64, 64), 8 * 64 * 64)
    assert difference(shown(data), photo(256, 128)) < 5
    with pytest.raises(TooLarge, match="256x128 is over 32767 pixels"):
        shown(data, 32_767)


def test_a_stream_of_larger_images_than_its_boxes_say_is_too_large(library: ModuleType) -> None:
    with pytest.raises(TooLarge, match="640x480 is over 5000 pixels"):
        shown(sized(written(library, photo(640, 480)), 64, 64), 5000)


def test_its_metadata_is_hidden_from_the_decoder(library: ModuleType) -> None:
    exif = Image.Exif()
    exif[0x010E] = "an image"
    data = written(library, photo(), exif=exif.tobytes(), xmp=b"<x/>")
    assert b"Exif" in data
    assert b"Exif" not in heif.sanitize(data).data[:600]
    assert shown(data).size == (60, 40)


def test_changed_images_and_those_cut_short_are_refused_or_images(library: ModuleType) -> None:
    good = [written(library, photo()), written(library, photo().convert("RGBA"))]
    changed = (mutated(seed, good) for seed in range(1000))
    for data in (*(good[0][:length] for length in range(0, 1500, 97)), *changed):
        with contextlib.suppress(ServiceError):
            assert shown(data).mode == "RGB"


def test_without_the_extra_it_cannot_be_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heif, "find_spec", lambda _: object())
    assert create_served_model(Settings(heic=True)) is not None
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(heif, "find_spec", lambda _: None)
    with pytest.raises(WrongOption, match=r"pip install 'googlenet-service\[heic\]'"):
        create_served_model(Settings(heic=True))


# Streams and boxes made by hand.


def unit(kind: int, content: bytes) -> bytes:
    return bytes([kind << 1, 1]) + content


def long(*units: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(each)) + each for each in units)


def golomb(value: int) -> str:
    bits = f"{value + 1:b}"
    return "0" * (len(bits) - 1) + bits


def sequence(width: int, height: int, *, layers: int = 0, chroma: int = 1) -> bytes:
    """Write a unit that says how large images are."""
    bits = "0000" + f"{layers:03b}" + "1" + "01" * 44 + "00000001"
    bits += "11" * layers + "00" * (8 - layers if layers else 0)
    bits += ("01" * 44 + "00000001") * layers
    bits += golomb(0) + golomb(chroma) + ("0" if chroma == 3 else "")
    bits += golomb(width) + golomb(height) + "1"
    size = -(-len(bits) // 8)
    content = int(bits.ljust(8 * size, "0"), 2).to_bytes(size, "big")
    return unit(33, content.replace(b"\0\0\1", b"\0\0\3\1"))


@pytest.mark.parametrize("layers", [0, 1, 3])
@pytest.mark.parametrize("chroma", [0, 1, 3])
def test_a_sequence_says_how_large_its_images_are(layers: int, chroma: int) -> None:
    said = sequence(4032, 3024, layers=layers, chroma=chroma)
    assert hevc.images(long(said)) == ([(4032, 3024)], 0)


def test_images_are_counted_by_their_first_slice() -> None:
    first, later = unit(19, b"\x80abc"), unit(19, b"\0abc")
    content = long(sequence(64, 64), first, later, later, unit(1, b"\xff"), unit(39, b"\x80"))
    assert hevc.images(content) == ([(64, 64)], 2)
    assert hevc.images(long(b"", first)) == ([], 1)


def test_too_many_units_are_refused() -> None:
    with pytest.raises(ValueError, match="too many units"):
        hevc.images(bytes(4) * 65_540)


def test_a_configuration_says_sizes_too() -> None:
    said = sequence(640, 480)
    arrays = b"\x20\0\1" + struct.pack(">H", 3) + unit(32, b"a")
    arrays += b"\x21\0\1" + struct.pack(">H", len(said)) + said
    assert list(hevc.configured_sizes(bytes(22) + b"\2" + arrays)) == [(640, 480)]
    assert list(hevc.configured_sizes(b"")) == []


def test_bits_behind_the_last_are_0() -> None:
    bits = BitReader(b"\xa0")
    assert [bits.read(4), bits.read(8), bits.read(3)] == [10, 0, 0]
    assert BitReader(b"").read_number() == 2**32 - 1


def made(kind: bytes, content: bytes, references: bytes = b"") -> bytes:
    """Write a HEIC of one item."""
    places = box(b"iloc", struct.pack(">IBBHHHHII", 0, 0x44, 0, 1, 1, 0, 1, 0, len(content)))
    kinds = box(
        b"iinf", struct.pack(">IH", 0, 1) + box(b"infe", b"\2\0\0\0\0\1\0\0" + kind + b"\0")
    )
    meta = box(b"meta", bytes(4) + places + kinds + references)
    head = box(b"ftyp", b"heic" + bytes(4) + b"heic")
    start = len(head) + len(meta) + 8
    at = meta.rindex(struct.pack(">II", 0, len(content)))
    meta = meta[:at] + struct.pack(">I", start) + meta[at + 4 :]
    return head + meta + box(b"mdat", content)


def test_repeated_references_to_an_image_count_each_time() -> None:
    stream = long(sequence(64, 64), unit(19, b"\x80"))
    said = struct.pack(">HH", 1, 500) + bytes(1000)
    small = box(b"iref", bytes(4) + box(b"dimg", said) + box(b"cdsc", bytes(6)))
    assert heif.sanitize(made(b"hvc1", stream, small)).pixels == 500 * 64 * 64
    wide = box(b"iref", b"\1\0\0\0" + box(b"dimg", struct.pack(">IH", 1, 7) + bytes(28)))
    assert heif.sanitize(made(b"hvc1", stream, wide)).pixels == 7 * 64 * 64
    assert heif.sanitize(made(b"hvc1", stream)).pixels == 64 * 64


@pytest.mark.parametrize("kind", [b"iovl", b"iden", b"tili"])
def test_images_laid_over_others_are_named(kind: bytes) -> None:
    with pytest.raises(UnsupportedType, match=f"a kind of HEIC .*{kind.decode()} items"):
        shown(made(kind, bytes(8)))


def test_a_heic_without_images_is_unreadable() -> None:
    for data in (made(b"hvc1", b""), made(b"mime", b"abc"), box(b"ftyp", b"heic" + bytes(4))):
        with pytest.raises(UnreadableImage):
            shown(data)

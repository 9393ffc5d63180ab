"""Images of a folder, and the count of skipped files."""

import os
from pathlib import Path

import pytest
from test_classify import plain

from service.imaging import image_folder
from service.imaging.image_folder import LeftOut

NOTE = "skipped, not images of a supported format: "


def heads(*given: bytes) -> list[bool]:
    return [image_folder.is_image("name", lambda head=head: head) for head in given]


def test_the_first_bytes_show_an_image() -> None:
    tiff, bmp = b"II*\0" + bytes(20), b"BM\x9a\0\0\0" + bytes(4) + b"\x36\0\0\0"
    assert heads(plain("red"), b"\xff\xd8\xff\xe0", b"GIF89a", tiff, bmp) == [True] * 5
    assert heads(b"", b"BMW and other cars", b"%PDF-1.7", b"RIFF....WAVE") == [False] * 4


@pytest.mark.parametrize("name", ["a.jpg", "A.JPEG", "a.b.jfif", "a/b.mpo", "a.TIF", "a.webp"])
def test_a_file_with_a_suffix_of_images_counts_as_an_image_unread(name: str) -> None:
    """Decoding it then fails with an error."""

    def unread() -> bytes:
        raise AssertionError

    assert image_folder.is_image(name, unread)


@pytest.mark.parametrize("name", ["a.nef", "a.DNG", "a.cr2"])
def test_a_cameras_raw_file_is_no_tiff(name: str) -> None:
    assert not image_folder.is_image(name, lambda: b"II*\0" + bytes(20))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.HEIC", ".heic"),
        ("a/b.tar.gz", ".gz"),
        ("a", "without a suffix"),
        ("a. 12 of May", "without a suffix"),
        ("a.\n", "without a suffix"),
        ("a.averylongsuffix", "without a suffix"),
    ],
)
def test_a_kind_is_a_suffix(name: str, kind: str) -> None:
    assert image_folder.kind(name) == kind


def test_skipped_files_are_counted_by_kind_the_most_frequent_first() -> None:
    left_out = LeftOut()
    assert not left_out.sentence
    for number, kind in enumerate([".a", ".b", ".b", ".c", ".d", ".e", ".f", ".g", ".h"]):
        left_out.add(f"{number}", kind)
    assert left_out.sentence == (
        f"{NOTE}2 .b (1), 1 .a (0), 1 .c (3), 1 .d (4), 1 .e (5), 1 .f (6), 2 of other kinds"
    )


def test_a_name_that_is_not_utf_8_is_escaped() -> None:
    left_out = LeftOut()
    left_out.add(os.fsdecode(b"\xff\n.txt"), ".txt")
    assert left_out.sentence == f"{NOTE}1 .txt ('\\udcff\\n.txt')"


def test_a_folder_is_walked_and_other_files_counted(tmp_path: Path) -> None:
    for name in ("b/c", "a.png", "b/a"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(plain("red"))
    (tmp_path / "b/empty").touch()
    (tmp_path / "b/.hidden").touch()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "again").symlink_to(tmp_path / "b")
    (tmp_path / "z.png").symlink_to(tmp_path / "b/a")
    skipped: list[tuple[str, str]] = []
    images = [*image_folder.walk(tmp_path, lambda *what: skipped.append(what))]
    assert images == [f"{tmp_path}/{name}" for name in ("a.png", "z.png", "b/a", "b/c")]
    assert [(name.removeprefix(f"{tmp_path}/"), kind) for name, kind in skipped] == [
        ("again", "link to a folder"),
        ("gone.png", "broken link or special file"),
        ("pipe", "broken link or special file"),
        ("b/empty", "without a suffix"),
    ]
    assert [path.name for path in image_folder.images(image_folder.files(tmp_path))] == [
        "a.png",
        "z.png",
    ]


def test_unreadable_folders_and_files_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests may run as root, which can read all files: so the errors are simulated."""
    (tmp_path / "locked").mkdir()
    (tmp_path / "secret").write_bytes(plain("red"))
    scandir = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    def unopened(*_: object) -> object:
        raise PermissionError

    monkeypatch.setattr(os, "scandir", refusing)
    monkeypatch.setattr(image_folder, "open", unopened, raising=False)
    skipped: list[tuple[str, str]] = []
    assert [*image_folder.walk(tmp_path, lambda *what: skipped.append(what))] == []
    assert skipped == [
        (f"{tmp_path}/secret", "without a suffix"),
        (f"{tmp_path}/locked", "unreadable folder"),
    ]

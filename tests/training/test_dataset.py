"""The images to learn from."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.errors import ModelError
from service.training import dataset
from service.training.dataset import Dataset


def folder(root: Path, classes: Mapping[str, Sequence[int]]) -> Path:
    """Write images of one colour, a number each, into a folder for each class."""
    for name, numbers in classes.items():
        (root / name).mkdir(parents=True)
        for number in numbers:
            colour = (number % 256, 100, 200 - number % 100)
            Image.new("RGB", (12, 10), colour).save(root / name / f"{number}.png")
    return root


def read(root: Path, share: float = 0.25) -> Dataset:
    return dataset.read(root, share, max_pixels=1000, progress=lambda *_: None)


def files(found: Dataset) -> dict[str, int]:
    return {p.path.name: p.index for p in (*found.training, *found.held_out)}


def test_folders_are_classes_in_the_order_of_their_names(tmp_path: Path) -> None:
    found = read(folder(tmp_path, {"b": range(8), "a": range(10, 14)}))
    assert found.classes == ("a", "b")
    assert files(found) == {f"{n}.png": int(n < 10) for n in [*range(8), *range(10, 14)]}
    assert found.left_out == ()


def test_a_share_of_each_class_is_held_out_but_never_all_of_it(tmp_path: Path) -> None:
    root = folder(tmp_path, {"a": range(8), "b": range(10, 14), "c": range(20, 22)})
    for share, expected in ((0.25, [2, 1, 1]), (0.99, [7, 3, 1])):
        data = read(root, share)
        held_out = [sum(image.index == index for image in data.held_out) for index in range(3)]
        assert held_out == expected
        assert len(data.training) == 14 - sum(expected)


def test_another_image_moves_at_most_one_image_between_training_and_held_out(
    tmp_path: Path,
) -> None:
    before = read(folder(tmp_path / "1", {"a": range(40), "b": range(50, 60)}))
    after = read(folder(tmp_path / "2", {"a": range(41), "b": range(50, 60)}))
    sides = [{p.path.name for p in found.held_out} for found in (before, after)]
    assert len(sides[0] - sides[1]) <= 1


def test_the_fingerprint_is_of_images_and_classes_and_not_of_file_names(tmp_path: Path) -> None:
    first = folder(tmp_path / "1", {"a": range(6), "b": range(10, 14)})
    second = folder(tmp_path / "2", {"a": range(6), "b": range(10, 14)})
    for path in [*second.glob("*/*")]:
        path.rename(path.with_name(f"x{path.stem}.jpeg"))
    before, renamed = read(first), read(second)
    assert before.fingerprint == renamed.fingerprint
    assert {p.path.stem for p in before.held_out} == {p.path.stem[1:] for p in renamed.held_out}
    (first / "a" / "5.png").rename(first / "b" / "5.png")
    moved = read(first).fingerprint
    (first / "b" / "5.png").unlink()
    assert len({before.fingerprint, moved, read(first).fingerprint}) == 3


def test_copies_are_one_image(tmp_path: Path) -> None:
    root = folder(tmp_path, {"a": range(6), "b": range(10, 14)})
    copy = root / "a" / "copy.png"
    copy.write_bytes((root / "a" / "3.png").read_bytes())
    found = read(root)
    assert files(found).keys() == {f"{n}.png" for n in [*range(6), *range(10, 14)]}
    assert found.left_out == (f"{copy}: the same image as {root / 'a' / '3.png'}",)


def test_an_image_in_two_classes_is_in_neither(tmp_path: Path) -> None:
    root = folder(tmp_path, {"a": range(6), "b": range(10, 14)})
    (root / "b" / "3.png").write_bytes((root / "a" / "3.png").read_bytes())
    found = read(root)
    assert "3.png" not in files(found)
    assert found.left_out == (f"{root / 'a' / '3.png'}: the same image is in another class",)


def test_files_that_cannot_be_used_are_left_out(tmp_path: Path) -> None:
    root = folder(tmp_path, {"a": range(6), "b": range(10, 14)})
    (root / "a" / "notes.txt").write_text("to do")
    (root / "b" / "cut.png").write_bytes((root / "b" / "10.png").read_bytes()[:50])
    Image.new("RGB", (40, 40)).save(root / "b" / "large.png")
    os.mkfifo(root / "b" / "pipe.png")  # which is not waited for
    (root / "b" / "gone.png").symlink_to(tmp_path / "nowhere")
    (root / "b" / ".hidden").write_text("")
    (root / ".cache").mkdir()
    told = "\n".join(read(root).left_out)
    assert told.count("\n") == 4
    assert told.count(".png: not an image (broken link or special file)") == 2
    assert "notes.txt: not an image (.txt)" in told
    assert "cut.png: the PNG image is broken" in told
    assert "large.png: 40x40 is over 1000 pixels" in told


def test_the_statistics_are_of_the_training_images(tmp_path: Path) -> None:
    root = folder(tmp_path, {"a": range(6), "b": range(10, 14)})
    found = read(root)
    pixels = np.stack([np.asarray(Image.open(p.path)) for p in found.training]) / 1.0
    assert found.statistics.mean == pytest.approx(pixels.mean((0, 1, 2)), abs=0.01)
    deviation = np.maximum(pixels.std((0, 1, 2)), 1)
    assert found.statistics.deviation == pytest.approx(deviation, abs=0.01)


def test_progress_is_reported(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    root = folder(tmp_path, {"a": range(2), "b": range(10, 12)})
    dataset.read(root, 0.5, max_pixels=1000, progress=lambda *done: told.append(done))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [
        ({}, "needs a folder of images for each of two classes or more"),
        ({"a": range(3)}, "needs a folder of images for each of two classes or more"),
        ({"a": range(3), "b": [10]}, "class 'b' needs two different images or more"),
        ({"a": range(3), "b": []}, "class 'b' needs two different images or more"),
        ({"a": range(3), "b\n": range(4, 6)}, r"'b\\n' cannot be the name of a class"),
    ],
)
def test_too_few_images_are_an_error(
    classes: Mapping[str, Sequence[int]], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=sentence):
        read(folder(tmp_path, classes))
    with pytest.raises(ModelError, match="is not a folder"):
        read(tmp_path / "absent")

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


def test_of_each_class_a_share_is_held_out(tmp_path: Path) -> None:
    found = read(folder(tmp_path, {"a": range(8), "b": range(10, 14), "c": range(20, 22)}))
    count = [sum(p.index == index for p in found.held_out) for index in range(3)]
    assert count == [2, 1, 1]
    assert len(found.training) == 14 - 4


def test_however_large_the_share_something_is_learnt_from(tmp_path: Path) -> None:
    found = read(folder(tmp_path, {"a": range(5), "b": range(10, 12)}), 0.99)
    assert sorted(p.index for p in found.training) == [0, 1]


def test_another_image_moves_none_that_was_learnt_from_to_the_other_side_but_one(
    tmp_path: Path,
) -> None:
    before = read(folder(tmp_path / "1", {"a": range(40), "b": range(50, 60)}))
    after = read(folder(tmp_path / "2", {"a": range(41), "b": range(50, 60)}))
    sides = [{p.path.name for p in found.held_out} for found in (before, after)]
    assert len(sides[0] - sides[1]) <= 1


def test_the_names_of_files_make_no_difference(tmp_path: Path) -> None:
    one = folder(tmp_path / "1", {"a": range(6), "b": range(10, 14)})
    other = folder(tmp_path / "2", {"a": range(6), "b": range(10, 14)})
    for path in [*other.glob("*/*")]:
        path.rename(path.with_name(f"x{path.stem}.jpeg"))
    first, second = read(one), read(other)
    assert first.fingerprint == second.fingerprint
    assert {p.path.stem for p in first.held_out} == {p.path.stem[1:] for p in second.held_out}


@pytest.mark.parametrize("change", ["another image", "another class"])
def test_the_images_and_their_classes_do(change: str, tmp_path: Path) -> None:
    root = folder(tmp_path, {"a": range(6), "b": range(10, 14)})
    before = read(root).fingerprint
    if change == "another image":
        (root / "a" / "5.png").unlink()
    else:
        (root / "a" / "5.png").rename(root / "b" / "5.png")
    assert read(root).fingerprint != before


def test_copies_are_one_image(tmp_path: Path) -> None:
    root = folder(tmp_path, {"a": range(6), "b": range(10, 14)})
    copy = root / "a" / "copy.png"
    copy.write_bytes((root / "a" / "3.png").read_bytes())
    found = read(root)
    assert files(found).keys() == {f"{n}.png" for n in [*range(6), *range(10, 14)]}
    assert found.left_out == (f"{copy}: the same image as {root / 'a' / '3.png'}",)


def test_a_image_in_two_classes_is_in_neither(tmp_path: Path) -> None:
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


def test_the_statistics_are_of_what_is_learnt_from(tmp_path: Path) -> None:
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


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a folder"):
        read(tmp_path / "absent")

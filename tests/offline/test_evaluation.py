"""How often a model is right on a folder of labelled photos."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import fake_backend, served_model
from PIL import Image

from service.cli import offline
from service.errors import ModelError, ServiceError, UnreadableImage, UnsupportedType
from service.models.ensemble import Prediction
from service.models.manifest import Label
from service.offline import evaluation
from service.offline.evaluation import CHUNK, Agreement, Photo, Score

LABELS = tuple(
    Label(name=name, wnid=wnid)
    for name, wnid in (("red", "n00000001"), ("green", "n00000002"), ("blue", None))
)
RED, GREEN, BLUE = range(3)


def photo(path: Path, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path, "PNG")
    return path


# Finding photos.


@pytest.mark.parametrize(
    ("names", "labelled"),
    [
        (  # by the names of files
            ("n00000002_7_tench.JPEG", "n00000001.png", "readme.txt", "n0000001x.png"),
            [("n00000001.png", RED), ("n00000002_7_tench.JPEG", GREEN)],
        ),
        (  # by the names of folders: WordNet ids or labels
            ("n00000001/b.png", "n00000001/a.png", "blue/any name.png"),
            [("blue/any name.png", BLUE), ("n00000001/a.png", RED), ("n00000001/b.png", RED)],
        ),
        (("others/a.png", "n00000002.png"), [("n00000002.png", GREEN)]),
        ((".cache/a.png", "red/deeper/a.png", "red/a.png"), [("red/a.png", RED)]),
    ],
)
def test_photos_are_labelled_by_their_name_or_folder(
    names: Sequence[str], labelled: list[tuple[str, int]], tmp_path: Path
) -> None:
    for name in names:
        photo(tmp_path / name)
    photos = evaluation.find(tmp_path, LABELS)
    assert [(p.path.relative_to(tmp_path).as_posix(), p.index) for p in photos] == labelled


def test_files_that_are_not_images_are_left_out(tmp_path: Path) -> None:
    photo(tmp_path / "red/a")
    (tmp_path / "red/notes.txt").write_text("no image")
    (tmp_path / "red/empty.png").write_bytes(b"")  # an error of its own, for it should be one
    left_out: list[tuple[str, str]] = []
    photos = evaluation.find(tmp_path, LABELS, lambda *what: left_out.append(what))
    assert [photo_.path.name for photo_ in photos] == ["a", "empty.png"]
    assert left_out == [(f"{tmp_path}/red/notes.txt", ".txt")]
    photo(tmp_path / "n00000001_1")
    (tmp_path / "n00000001.txt").write_text("no image")
    photos = evaluation.find(tmp_path, LABELS, lambda *what: left_out.append(what))
    assert [photo_.path.name for photo_ in photos] == ["n00000001_1"]
    assert left_out[1:] == [(f"{tmp_path}/n00000001.txt", ".txt")]


def test_commands_print_skipped_files_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo(tmp_path / "red/a")
    assert len(offline.photos(tmp_path, LABELS)) == 1
    assert capsys.readouterr().err == ""
    (tmp_path / "red/notes.txt").write_text("no image")
    assert len(offline.photos(tmp_path, LABELS)) == 1
    assert capsys.readouterr().err == (
        f"skipped, not images of a supported format: 1 .txt ({tmp_path}/red/notes.txt)\n"
    )


@pytest.mark.parametrize(
    ("name", "folder", "sentence"),
    [
        ("mauve/a.png", "", "mauve/a.png.*has no class 'mauve'"),
        ("n99999999_1.JPEG", "", "has no class 'n99999999'"),
        ("holiday.png", "", "has no photos named by a WordNet id"),
        ("file.png", "absent", "is not a folder"),
        ("file.png", "file.png", "is not a folder"),
    ],
)
def test_a_folder_without_labelled_photos_is_an_error(
    name: str, folder: str, sentence: str, tmp_path: Path
) -> None:
    photo(tmp_path / name)
    with pytest.raises(ModelError, match=sentence):
        evaluation.find(tmp_path / folder, LABELS)


# Ranking and scoring.


def ranked(paths: Sequence[Path], top_k: int = 3) -> list[list[str] | ServiceError]:
    """Return the labels of each photo, most probable first, or its error."""

    async def main() -> list[list[str] | ServiceError]:
        async with served_model(lambda *_: fake_backend(), max_pixels=1000) as model:
            photos = [Photo(path, 0) for path in paths]
            rankings = await evaluation.rank_all(
                await model.ready(), photos, "single", lambda _: None, top_k=top_k
            )
            return [r if isinstance(r, ServiceError) else [p.label for p in r] for r in rankings]

    return asyncio.run(main())


def test_photos_are_ranked_in_their_order_with_the_errors_in_place(tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("hello")
    broken = photo(tmp_path / "broken.png")
    broken.write_bytes(broken.read_bytes()[:50])
    blue, red = photo(tmp_path / "blue.png", "blue"), photo(tmp_path / "red.png", "red")
    first, second, third, fourth = ranked([blue, text, red, broken], top_k=1)
    assert (first, third) == (["blue"], ["red"])
    assert isinstance(second, UnsupportedType)
    assert isinstance(fourth, UnreadableImage)


def test_more_photos_than_fit_in_memory_are_ranked_in_parts(tmp_path: Path) -> None:
    colours = ["red", "lime", "blue"]
    paths = [photo(tmp_path / f"{n}.png", colours[n % 3]) for n in range(2 * CHUNK + 1)]
    labels = ["red", "green", "blue"]
    assert ranked(paths, top_k=1) == [[labels[n % 3]] for n in range(2 * CHUNK + 1)]
    assert ranked([]) == []


def test_progress_is_reported(tmp_path: Path) -> None:
    steps: list[int] = []

    async def main() -> Score:
        photos = [Photo(photo(tmp_path / "red.png"), RED)] * (CHUNK + 3)
        async with served_model(lambda *_: fake_backend()) as model:
            return await evaluation.evaluate(await model.ready(), photos, "single", steps.append)

    assert asyncio.run(main()).top1 == CHUNK + 3
    assert steps == [CHUNK, 3]


# Comparing, as a pure function.


def ranking(*probabilities: float) -> tuple[Prediction, ...]:
    """Rank all labels by their probabilities, as a classifier does."""
    ranked = [
        Prediction(label.name, label.wnid, index, probability)
        for index, (label, probability) in enumerate(zip(LABELS, probabilities, strict=True))
    ]
    return tuple(sorted(ranked, key=lambda one: -one.probability))


UNREADABLE = UnreadableImage("it is broken")
PHOTOS = [Photo(Path("far/a.png"), RED), Photo(Path("b.png"), GREEN), Photo(Path("c.png"), BLUE)]


EXACT = [ranking(0.7, 0.2, 0.1), ranking(0, 1, 0), ranking(0.3, 0.3, 0.4)]


@pytest.mark.parametrize(
    ("exact", "near", "agreement"),
    [
        (EXACT, EXACT, Agreement(3, 0.0, ())),
        (  # the furthest is red's on the third, which is not its first
            EXACT,
            [ranking(0.7, 0.2, 0.1), ranking(0.1, 0.9, 0), ranking(0.05, 0.5, 0.45)],
            Agreement(2, pytest.approx(0.25), ("c.png: green 0.500, exactly blue 0.400",)),
        ),
        (
            [ranking(0.51, 0.49, 0), ranking(0, 1, 0)],
            [ranking(0.4996, 0.5004, 0), ranking(0, 1, 0)],
            Agreement(1, pytest.approx(0.0104), ("a.png: green 0.500, exactly red 0.510",)),
        ),
        # With the exact answer, and not with the truth, which is red.
        ([ranking(0, 0.9, 0.1)], [ranking(0, 0.9, 0.1)], Agreement(1, 0.0, ())),
        # Photos that either could not read are not compared.
        (
            [UNREADABLE, ranking(0, 1, 0), ranking(0, 0, 1)],
            [ranking(1, 0, 0), UNREADABLE, ranking(0, 0.1, 0.9)],
            Agreement(1, pytest.approx(0.1), ()),
        ),
        ([UNREADABLE] * 3, [UNREADABLE] * 3, Agreement(0, 0.0, ())),
    ],
)
def test_the_agreement_of_two_rankings(
    exact: Sequence[Any], near: Sequence[Any], agreement: Agreement
) -> None:
    assert evaluation.compare(PHOTOS[: len(exact)], exact, near) == agreement


def test_a_score_is_of_the_first_five_of_a_longer_ranking() -> None:
    labels = [Prediction(f"class {n}", None, n, 1 / (n + 1)) for n in range(8)]
    photos = [Photo(Path(f"{n}.png"), n) for n in (0, 4, 5)]
    score = evaluation.score("ten", photos, [labels] * 3)
    assert score == Score("ten", photos=3, top1=1, top5=2, unreadable=())


def test_a_score_names_the_unreadable() -> None:
    score = evaluation.score("ten", PHOTOS[:2], [UNREADABLE, ranking(0, 1, 0)])
    assert score == Score("ten", 2, 1, 1, ("a.png: it is broken",))


def test_the_shared_photos_are_of_a_hundred_classes(shared: Path, tmp_path: Path) -> None:
    paths = sorted((shared / "photos").glob("*.JPEG"))
    for path in paths:
        (tmp_path / path.name).symlink_to(path)
    labels = [Label(name=f"class {n}", wnid=path.name[:9]) for n, path in enumerate(paths)]
    assert [photo.index for photo in evaluation.find(tmp_path, labels)] == list(range(100))

"""How often a model is right on a folder of labelled photos."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import fake_backend
from PIL import Image

from service.cli import evaluate
from service.errors import ModelError, ServiceError, UnreadableImage, UnsupportedType
from service.imaging.image_decoder import Bounds
from service.models.ensemble import Prediction
from service.models.manifest import Label
from service.offline import evaluation
from service.offline.evaluation import CHUNK, Agreement, Photo, Score
from service.serving.served_model import ServedModel
from service.serving.types import Limits

LABELS = tuple(
    Label(name=name, wnid=wnid)
    for name, wnid in (("red", "n00000001"), ("green", "n00000002"), ("blue", None))
)
RED, GREEN, BLUE = range(3)


def photo(path: Path, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path, "PNG")
    return path


def found(folder: Path) -> list[tuple[str, int]]:
    photos = evaluation.find(folder, LABELS)
    return [(photo.path.relative_to(folder).as_posix(), photo.index) for photo in photos]


# Finding photos.


def test_a_photo_may_be_named_by_its_wordnet_id(tmp_path: Path) -> None:
    for name in ("n00000002_7_tench.JPEG", "n00000001.png", "readme.txt", "n0000001x.png"):
        photo(tmp_path / name)
    assert found(tmp_path) == [("n00000001.png", RED), ("n00000002_7_tench.JPEG", GREEN)]


def test_a_folder_may_be_named_by_a_wordnet_id_or_a_label(tmp_path: Path) -> None:
    for name in ("n00000001/b.png", "n00000001/a.png", "blue/any name.png"):
        photo(tmp_path / name)
    assert found(tmp_path) == [
        ("blue/any name.png", BLUE),
        ("n00000001/a.png", RED),
        ("n00000001/b.png", RED),
    ]


def test_files_that_are_not_images_are_left_out(tmp_path: Path) -> None:
    photo(tmp_path / "red/a")
    (tmp_path / "red/notes.txt").write_text("no image")
    (tmp_path / "red/empty.png").write_bytes(b"")  # an error of its own, for it should be one
    left_out: list[tuple[str, str]] = []
    photos = evaluation.find(tmp_path, LABELS, lambda *what: left_out.append(what))
    assert [one.path.name for one in photos] == ["a", "empty.png"]
    assert left_out == [(f"{tmp_path}/red/notes.txt", ".txt")]
    photo(tmp_path / "n00000001_1")
    (tmp_path / "n00000001.txt").write_text("no image")
    photos = evaluation.find(tmp_path, LABELS, lambda *what: left_out.append(what))
    assert [one.path.name for one in photos] == ["n00000001_1"]
    assert left_out[1:] == [(f"{tmp_path}/n00000001.txt", ".txt")]


def test_commands_print_what_is_left_out_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo(tmp_path / "red/a")
    assert len(evaluate.photos(tmp_path, LABELS)) == 1
    assert capsys.readouterr().err == ""
    (tmp_path / "red/notes.txt").write_text("no image")
    assert len(evaluate.photos(tmp_path, LABELS)) == 1
    assert capsys.readouterr().err == (
        f"skipped, not images of a supported format: 1 .txt ({tmp_path}/red/notes.txt)\n"
    )


def test_folders_beside_named_photos_are_left_alone(tmp_path: Path) -> None:
    for name in ("others/a.png", "n00000002.png"):
        photo(tmp_path / name)
    assert found(tmp_path) == [("n00000002.png", GREEN)]


def test_hidden_folders_and_folders_in_folders_are_left_out(tmp_path: Path) -> None:
    for name in (".cache/a.png", "red/deeper/a.png", "red/a.png"):
        photo(tmp_path / name)
    (tmp_path / "n00000001").mkdir()
    assert found(tmp_path) == [("red/a.png", RED)]


def test_a_class_the_model_does_not_have_is_an_error(tmp_path: Path) -> None:
    unknown = photo(tmp_path / "mauve/a.png")
    with pytest.raises(ModelError, match="has no class 'mauve'") as error:
        evaluation.find(tmp_path, LABELS)
    assert str(unknown) in str(error.value)


def test_a_wordnet_id_the_model_does_not_have_is_an_error(tmp_path: Path) -> None:
    photo(tmp_path / "n99999999_1.JPEG")
    with pytest.raises(ModelError, match="has no class 'n99999999'"):
        evaluation.find(tmp_path, LABELS)


def test_a_folder_without_photos_is_an_error(tmp_path: Path) -> None:
    photo(tmp_path / "holiday.png")
    with pytest.raises(ModelError, match="has no photos named by a WordNet id"):
        evaluation.find(tmp_path, LABELS)


@pytest.mark.parametrize("name", ["absent", "file.png"])
def test_what_is_not_a_folder_is_an_error(tmp_path: Path, name: str) -> None:
    photo(tmp_path / "file.png")
    with pytest.raises(ModelError, match="is not a folder"):
        evaluation.find(tmp_path / name, LABELS)


# Ranking and scoring.


def serving() -> ServedModel:
    limits = Limits(image=Bounds(1000), max_queue_bytes=10**9, stall_seconds=60)
    return ServedModel(lambda *_: fake_backend(), limits, lambda _: None)


def ranked(paths: Sequence[Path], top_k: int = 3) -> list[list[str] | ServiceError]:
    """Return the labels of each photo, most probable first, or its error."""

    async def main() -> list[list[str] | ServiceError]:
        async with serving() as served_model:
            classifier = await served_model.ready()
            photos = [Photo(path, 0) for path in paths]
            rankings = await evaluation.rank_all(
                classifier, photos, "single", lambda _: None, top_k=top_k
            )
            return [r if isinstance(r, ServiceError) else [p.label for p in r] for r in rankings]

    return asyncio.run(main())


def scored(photos: Sequence[Photo], plan: str = "single") -> tuple[Score, list[int]]:
    """Score photos, and return the calls of `advance`."""

    async def main() -> tuple[Score, list[int]]:
        steps: list[int] = []
        async with serving() as served_model:
            classifier = await served_model.ready()
            return await evaluation.evaluate(classifier, photos, plan, steps.append), steps

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


def test_no_photos_have_no_ranking() -> None:
    assert ranked([]) == []


@pytest.mark.parametrize("plan", ["single", "ten"])
def test_right_answers_are_counted_first_and_among_the_five(tmp_path: Path, plan: str) -> None:
    red, blue = photo(tmp_path / "red.png", "red"), photo(tmp_path / "blue.png", "blue")
    absent = 99  # among five of three labels every other one is found
    photos = [Photo(red, RED), Photo(red, GREEN), Photo(blue, BLUE), Photo(blue, absent)]
    score, _ = scored(photos, plan)
    assert score == Score(plan, photos=4, top1=2, top5=3, unreadable=())


def test_an_unreadable_photo_is_named_and_the_others_are_scored(tmp_path: Path) -> None:
    broken = photo(tmp_path / "broken.png")
    broken.write_bytes(broken.read_bytes()[:50])
    photos = [Photo(broken, RED), Photo(photo(tmp_path / "red.png"), RED)]
    score, _ = scored(photos)
    assert (score.photos, score.top1, score.top5) == (2, 1, 1)
    (why,) = score.unreadable
    assert why.startswith("broken.png: the PNG image is broken")


def test_progress_is_reported(tmp_path: Path) -> None:
    red = photo(tmp_path / "red.png")
    score, steps = scored([Photo(red, RED)] * (CHUNK + 3))
    assert score.top1 == CHUNK + 3
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


def test_a_ranking_agrees_with_itself() -> None:
    exact = [ranking(0.7, 0.2, 0.1), ranking(0, 1, 0), ranking(0.3, 0.3, 0.4)]
    assert evaluation.compare(PHOTOS, exact, exact) == Agreement(3, 0.0, ())


def test_the_furthest_probability_is_of_any_class_of_any_photo() -> None:
    exact = [ranking(0.7, 0.2, 0.1), ranking(0, 1, 0), ranking(0.3, 0.3, 0.4)]
    near = [ranking(0.7, 0.2, 0.1), ranking(0.1, 0.9, 0), ranking(0.05, 0.5, 0.45)]
    found = evaluation.compare(PHOTOS, exact, near)
    assert found.same == 2
    assert found.furthest == pytest.approx(0.25)  # red's on the third, which is not its first


def test_a_photo_with_another_first_label_has_a_sentence() -> None:
    exact = [ranking(0.51, 0.49, 0), ranking(0, 1, 0)]
    near = [ranking(0.4996, 0.5004, 0), ranking(0, 1, 0)]
    found = evaluation.compare(PHOTOS[:2], exact, near)
    assert found.same == 1
    assert found.different == ("a.png: green 0.500, exactly red 0.510",)


def test_agreement_is_with_the_exact_answer_and_not_with_the_truth() -> None:
    wrong = [ranking(0, 0.9, 0.1)]  # of a red photo
    assert evaluation.compare(PHOTOS[:1], wrong, wrong).same == 1


def test_photos_that_either_could_not_read_are_not_compared() -> None:
    exact = [UNREADABLE, ranking(0, 1, 0), ranking(0, 0, 1)]
    near = [ranking(1, 0, 0), UNREADABLE, ranking(0, 0.1, 0.9)]
    found = evaluation.compare(PHOTOS, exact, near)
    assert found == Agreement(1, pytest.approx(0.1), ())
    assert evaluation.compare(PHOTOS, [UNREADABLE] * 3, [UNREADABLE] * 3) == Agreement(0, 0.0, ())


def test_a_score_is_of_the_first_five_of_a_longer_ranking() -> None:
    labels = [Prediction(f"class {n}", None, n, 1 / (n + 1)) for n in range(8)]
    photos = [Photo(Path(f"{n}.png"), n) for n in (0, 4, 5)]
    found = evaluation.score("ten", photos, [labels] * 3)
    assert found == Score("ten", photos=3, top1=1, top5=2, unreadable=())


def test_a_score_names_the_unreadable() -> None:
    found = evaluation.score("ten", PHOTOS[:2], [UNREADABLE, ranking(0, 1, 0)])
    assert found == Score("ten", 2, 1, 1, ("a.png: it is broken",))


def test_the_shared_photos_are_of_a_hundred_classes(shared: Path, tmp_path: Path) -> None:
    paths = sorted((shared / "photos").glob("*.JPEG"))
    for path in paths:
        (tmp_path / path.name).symlink_to(path)
    labels = [Label(name=f"class {n}", wnid=path.name[:9]) for n, path in enumerate(paths)]
    assert [photo.index for photo in evaluation.find(tmp_path, labels)] == list(range(100))


def test_probabilities_are_in_the_order_of_the_classes_and_none_is_quite_0() -> None:
    likely, targets = evaluation.probabilities(
        PHOTOS, [ranking(0.2, 0.8, 0), UNREADABLE, ranking(0, 0.4, 0.6)]
    )
    assert likely.tolist() == pytest.approx(np.array([[0.2, 0.8, 0], [0, 0.4, 0.6]]), abs=1e-30)
    assert likely.min() > 0
    assert targets.tolist() == [PHOTOS[0].index, PHOTOS[2].index]


def test_photos_none_of_which_can_be_read_have_none() -> None:
    with pytest.raises(ModelError, match="none of the photos can be read"):
        evaluation.probabilities(PHOTOS, [UNREADABLE] * 3)

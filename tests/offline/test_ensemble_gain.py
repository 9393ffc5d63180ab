"""Ensembles as the paper makes them: members of other seeds, and what averaging them gains."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import AS_IT_IS, ROOT, fake_backend, mean_colour, served_model
from PIL import Image
from pydantic import ValidationError
from test_cli import cells
from test_training import draw_stripes

from service.__main__ import main
from service.engine import weights
from service.engine.prepared_image import PreparedImage
from service.models.ensemble import Probabilities
from service.models.manifest import Manifest
from service.models.store import Store
from service.offline import ensemble_gain
from service.offline.ensemble_gain import Averaged
from service.scheduling.types import Batch
from service.serving import factory
from service.serving.backend import Backend
from service.serving.served_model import ServedModel
from service.settings import Settings
from service.training import loader
from service.training.options import Options

Captured = pytest.CaptureFixture[str]


# Members, which differ by what chance began with.

TINY = ["--width=0.05", "--batch=6", "--epochs=1", "--workers=2"]


@pytest.fixture(scope="module")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of six images each."""
    return draw_stripes(tmp_path_factory.mktemp("stripes"), 6)


def train(stripes: Path, store: Store, name: str, *more: str) -> int:
    where = [f"--model-store={store.root}", "--device=cpu", "--precision=float32"]
    return main(["train", str(stripes), f"--name={name}", *TINY, *where, *more])


@pytest.fixture(scope="module")
def trained(stripes: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with an ensemble of two."""
    store = Store(tmp_path_factory.mktemp("store"), ROOT / "model_store")
    assert train(stripes, store, "pair", "--members=2", "--seed=4") == 0
    return store


def test_members_differ_and_each_depends_on_its_seed_alone(stripes: Path, trained: Store) -> None:
    digests = [trained.verify(f"pair_{number}") for number in (1, 2)]
    assert digests[0] != digests[1]
    assert train(stripes, trained, "alone", "--seed=5") == 0
    assert trained.verify("alone") == digests[1]
    assert train(stripes, trained, "alone", "--seed=5") == 1  # nothing of it is missing
    first, second = (weights.load(trained, f"pair_{number}").state for number in (1, 2))
    assert not any(np.array_equal(first[name], second[name]) for name in first)


def test_members_see_the_images_in_orders_of_their_own() -> None:
    each = Options(folder=Path("here"), name="seven", members=7, seed=3).each()
    assert [member.name for member in each] == [f"seven_{number}" for number in range(1, 8)]
    assert [member.seed for member in each] == [3, 4, 5, 6, 7, 8, 9]
    orders = [loader.order(20, member.seed, 0) for member in each]
    assert all(first != second for first, second in pairwise(orders))
    assert len({member.model_copy(update={"name": "", "seed": 0}) for member in each}) == 1
    single = Options(folder=Path("here"), name="single", seed=3)
    assert single.each() == (single,)
    with pytest.raises(ValidationError, match="String should match pattern"):
        Options(folder=Path("here"), name="x" * 63, members=2).each()


def test_the_same_command_trains_the_missing_members(
    stripes: Path, trained: Store, capsys: Captured
) -> None:
    before = trained.verify("pair_2")
    (trained.root / "pair_2/model.toml").unlink()
    capsys.readouterr()
    assert train(stripes, trained, "pair", "--members=2", "--seed=4") == 0
    told = capsys.readouterr()
    assert told.err.startswith("pair_1 is in the store already\n")
    assert "pair_1" not in told.out
    assert f"pair_2 is in the store, SHA-256 {before}" in told.out


def test_an_interrupted_member_is_not_done(stripes: Path, trained: Store, capsys: Captured) -> None:
    left = trained.root / "pair_1/training/checkpoint.pt"
    left.write_text("cut short")
    try:
        assert train(stripes, trained, "pair", "--members=2", "--seed=4") == 1
    finally:
        left.unlink()
    assert f"{left} is damaged" in capsys.readouterr().err


def test_another_command_does_not_take_a_members_name(
    stripes: Path, trained: Store, capsys: Captured
) -> None:
    assert train(stripes, trained, "pair", "--members=2", "--seed=9") == 1
    assert "there is a model 'pair_1' already; choose another --name" in capsys.readouterr().err


@pytest.mark.slow
def test_processes_train_the_members_in_turn(stripes: Path, tmp_path: Path) -> None:
    """Under torchrun, where processes could not meet a second time."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "service"]
    where = [f"--model-store={tmp_path}", "--device=cpu", "--precision=float32"]
    done = subprocess.run(  # noqa: S603 - ourselves
        [*launch, "train", str(stripes), "--name=pair", "--members=2", *TINY, *where],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines() if "is in the store" in line] == [
        "pair_1", "pair_2",
    ]  # fmt: skip


# The bootstrap.


def test_the_interval_of_a_share_is_that_of_the_binomial() -> None:
    """Of 400 tosses half heads: the binomial's own quantiles."""
    low, high = ensemble_gain.interval(np.repeat([0.0, 1.0], 200))
    assert (low, high) == (pytest.approx(0.451, abs=0.0026), pytest.approx(0.549, abs=0.0026))
    assert ensemble_gain.interval(np.full(30, 2.5)) == (2.5, 2.5)


def test_an_interval_is_that_of_resampled_images() -> None:
    random = np.random.default_rng(7)
    values = random.choice([-100.0, 0.0, 0.0, 0.0, 100.0, 37.5], 60)
    drawn = values[random.integers(0, 60, (20_000, 60))].mean(1)
    wanted = np.quantile(drawn, [0.025, 0.975])
    assert ensemble_gain.interval(values) == pytest.approx(wanted, abs=1.7)  # an image is 1.67
    assert ensemble_gain.interval(values) == ensemble_gain.interval(values[::-1])


# The rows, as a pure function.

TARGETS = np.array([0, 1, 5, 6])


def likely(*places: int) -> np.ndarray:
    """Seven classes for four images, in which the right one has these places from 0."""
    found = np.zeros((4, 7))
    for row, (place, target) in enumerate(zip(places, TARGETS, strict=True)):
        others = [at for at in range(7) if at != target]
        order = [*others[:place], target, *others[place:]]
        found[row, order] = np.linspace(0.7, 0.1, 7)
    return found


def test_errors_are_counted_and_compared_with_the_first() -> None:
    first = Averaged(1, "single", 1, 1.0, likely(0, 1, 5, 6))
    better = Averaged(1, "ten", 10, 10.0, likely(0, 0, 4, 6))
    # Of equal probabilities the first class counts.
    flat = Averaged(1, "single", 1, 1.0, np.full((4, 7), 1 / 7))
    base, other, equal = ensemble_gain.rows([first, better, flat], TARGETS)
    assert (equal.top1.error, equal.top5.error) == (75, 50)
    assert (base.top1.error, base.top5.error) == (75, 50)
    assert (base.top1.difference, base.top1.interval) == (0, (0, 0))
    assert (other.models, other.views, other.crops, other.cost) == (1, "ten", 10, 10)
    assert (other.top1.error, other.top1.difference) == (50, -25)
    assert (other.top5.error, other.top5.difference) == (25, -25)
    assert other.top1.interval == ensemble_gain.interval(np.array([0, -100, 0, 0]))
    assert other.top1.interval == (-75, 0)


def test_joined_models_count_alike() -> None:
    one, two, three = (
        Averaged(1, "ten", crops, cost, np.array([[share, 1 - share]]))
        for crops, cost, share in ((10, 10.0, 0.9), (5, 5.0, 0.3), (10, 10.0, 0.3))
    )
    all_ = ensemble_gain.join(ensemble_gain.join(one, two), three)
    assert (all_.models, all_.views, all_.crops, all_.cost) == (3, "ten", 10, 25)
    np.testing.assert_allclose(all_.probabilities, [[0.5, 0.5]])


# The command, with models that tell three colours apart, each wrong in a way of its own.

LABELS = ("red", "green", "blue")
MIXED = {  # from red, green and blue to what a model says
    "left": np.array([[0.6, 0.4, 0.0], [0.5, 0.5, 0.0], [0.0, 0.1, 0.9]]),
    "right": np.array([[0.9, 0.1, 0.0], [0.0, 0.6, 0.4], [0.0, 0.5, 0.5]]),
}


def of_names(settings: Settings) -> ServedModel:
    """Average the models that are named."""
    names = settings.model.split(",")

    def run(batch: Batch[PreparedImage]) -> list[Probabilities]:
        return [found @ MIXED[names[batch.key.member]] for found in mean_colour(batch)]

    def load(_: object) -> Backend:
        return fake_backend(run, members=len(names))

    return served_model(load)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with both models and one of other labels, and photos of mixed colours."""
    monkeypatch.setattr(factory, "create_served_model", of_names)
    monkeypatch.setenv("GOOGLENET_MODEL_STORE", str(tmp_path / "store"))
    for name, labels in {"left": LABELS, "right": LABELS, "other": ("a", "b", "c")}.items():
        (tmp_path / "store" / name).mkdir(parents=True)
        described = Manifest(
            architecture="fake", version="1", description="", licence="", classes=3,
            labels="labels.tsv", preprocessing=AS_IT_IS,
        )  # fmt: skip
        Store(tmp_path / "store", tmp_path).describe(name, described, labels)
    random = np.random.default_rng(1)
    for number in range(36):
        folder = tmp_path / "photos" / LABELS[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 120, (1, 1, 3)).repeat(20, 0).repeat(20, 1).astype(np.uint8)
        pixels[10:, :, number % 3] += 100
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path


def told(desk: Path, capsys: Captured, *arguments: str) -> list[dict[str, object]]:
    assert main(["evaluate", str(desk / "photos"), *arguments, "--json"]) == 0
    found: list[dict[str, object]] = json.loads(capsys.readouterr().out)
    return found


def test_rows_equal_separate_evaluations(desk: Path, capsys: Captured) -> None:
    plans = ("--plans", "single,ten,dense")
    rows = told(desk, capsys, "--model", "left,right", *plans, "--table")
    alone = told(desk, capsys, "--model", "left", *plans)
    together = told(desk, capsys, "--model", "left,right", *plans)
    assert [(row["models"], row["views"], row["crops"]) for row in rows] == [
        *(
            (models, *views)
            for models in (1, 2)
            for views in (("single", 1), ("ten", 10), ("dense", 2))
        )
    ]
    assert [row["cost"] for row in rows] == pytest.approx([1, 10, 3.306, 2, 20, 6.612], abs=0.001)
    single = told(desk, capsys, "--model=right", "--table")
    assert [(row["models"], row["views"]) for row in single] == [(1, "single"), (1, "ten")]
    errors = [row["top1"]["error"] for row in rows]
    assert errors == pytest.approx([100 - score["top1"] / 0.36 for score in [*alone, *together]])
    assert len({round(error) for error in errors}) > 1
    assert [row["top5"]["error"] for row in rows] == [0] * 6  # of three labels
    for row in rows:
        found = row["top1"]
        assert found["difference"] == pytest.approx(found["error"] - errors[0])
        low, high = found["interval"]
        assert low <= found["difference"] <= high


def test_the_table_is_that_of_the_paper(desk: Path, capsys: Captured) -> None:
    (desk / "photos/red/text.png").write_text("no image")
    photos = str(desk / "photos")
    assert main(["evaluate", photos, "--model=left,right", "--plans=single,ten", "--table"]) == 0
    printed = capsys.readouterr()
    assert max(map(len, printed.out.splitlines())) <= 100
    rows = cells(printed.out)
    assert [row[:3] for row in rows] == [
        ["1", "1", "1"], ["1", "10", "10"], ["2", "1", "2"], ["2", "10", "20"],
    ]  # fmt: skip
    assert (rows[0][4], rows[0][6]) == ("", "")
    assert rows[2][4].startswith(("-", "+"))
    assert " to " in rows[2][4]
    assert rows[2][5] == "0.00 %"
    assert "left,right on 36 photos of" in printed.out
    assert "text.png cannot be read and is left out" in printed.err


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("left,other", "left,other have different labels and cannot be averaged"),
        ("left,none", "there is no model 'none'"),
        ("left", "none of the photos can be read"),
    ],
)
def test_models_or_photos_that_cannot_be_averaged_are_an_error(
    model: str, sentence: str, desk: Path, capsys: Captured
) -> None:
    if model == "left":
        for photo in (desk / "photos").glob("*/*"):
            photo.write_text("no image")
    assert main(["evaluate", str(desk / "photos"), "--model", model, "--table"]) == 1
    assert sentence in capsys.readouterr().err


def test_it_is_a_table_or_a_comparison(desk: Path, capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", str(desk / "photos"), "--table", "--compare"])
    assert "not allowed with argument --table" in capsys.readouterr().err

"""The cache of measurements: reused while its identity is the same."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import small
from small import toy

from service.engine import openvino_engine
from service.engine.executor import Placed
from service.engine.measurement_cache import Measurements
from service.engine.openvino_executor import Model
from service.imaging.crops import CROP, DENSE
from service.scheduling.cost_model import Key, LinearCost
from service.settings import Settings

LINES = {
    Key(0, CROP): LinearCost(0.01, 0.002, 16),
    Key(0, DENSE, maps=True): LinearCost(0.0, 1e-5, 1),
}
IDENTITY: Mapping[str, object] = {"models": ["a"], "threads": 2}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of measurements in a cache for one test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "googlenet-service/measurements"


def kept(cache: Path) -> Path:
    (file,) = cache.iterdir()
    return file


def test_round_trip(cache: Path) -> None:
    assert Measurements(IDENTITY).read([*LINES]) is None
    Measurements(IDENTITY).write("bfloat16", LINES)
    assert Measurements(dict(reversed(IDENTITY.items()))).read([*LINES]) == ("bfloat16", LINES)
    assert kept(cache).suffix == ".json"


def test_identities_have_separate_files(cache: Path) -> None:
    Measurements(IDENTITY).write("bfloat16", LINES)
    other = {**IDENTITY, "threads": 1}
    assert Measurements(other).read([*LINES]) is None
    Measurements(other).write("float32", LINES)
    assert [Measurements(one).read([*LINES]) for one in (IDENTITY, other)] == [
        ("bfloat16", LINES),
        ("float32", LINES),
    ]
    assert len([*cache.iterdir()]) == 2


def test_cpus_have_separate_files(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with hidden instructions."""
    Measurements(IDENTITY).write("bfloat16", LINES)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert Measurements(IDENTITY).read([*LINES]) is None
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    assert Measurements(IDENTITY).read([*LINES]) is not None
    assert '"cpu"' in kept(cache).read_text()


def test_costs_of_other_keys_are_ignored(cache: Path) -> None:
    Measurements(IDENTITY).write("bfloat16", LINES)
    assert Measurements(IDENTITY).read([*LINES, Key(1, CROP)]) is None
    assert Measurements(IDENTITY).read([Key(0, CROP)]) is None
    assert kept(cache).is_file()


@pytest.mark.parametrize(
    ("pattern", "instead"),
    [
        (r"[^\0]*", ""),
        (r"[^\0]*", "{}"),
        (r"[^\0]*", "[]"),
        (r"[^\0]*", '{"identity": {}, "precision": "float32", "curves": []}'),
        (r"[^\0]*", "\0" * 100),
        ('"fixed": 0.01', '"fixed": NaN'),
        ('"fixed": 0.01', '"fixed": "quick"'),
        ('"fixed": 0.01', '"fixed": null'),
        ('"threads": "2"', '"threads": "3"'),  # of another identity
    ],
)
def test_a_damaged_file_is_ignored_and_replaced(pattern: str, instead: str, cache: Path) -> None:
    Measurements(IDENTITY).write("bfloat16", LINES)
    text = kept(cache).read_text()
    kept(cache).write_text(re.sub(pattern, lambda _: instead, text, count=1))
    assert kept(cache).read_text() != text
    assert Measurements(IDENTITY).read([*LINES]) is None
    Measurements(IDENTITY).write("bfloat16", LINES)
    assert Measurements(IDENTITY).read([*LINES]) == ("bfloat16", LINES)


def test_unwritable_cache_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    Measurements(IDENTITY).write("bfloat16", LINES)
    assert Measurements(IDENTITY).read([*LINES]) is None
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# An engine.


@pytest.fixture(scope="module")
def models() -> list[Model]:
    """A small model."""
    return [small.converted(toy())]


def place(models: Sequence[Model], *, threads: int = 1, **chosen: object) -> Placed:
    settings = Settings.model_validate({"precision": "float32", "max_batch": 4, **chosen})
    return openvino_engine.place(models, settings, threads)


def test_a_restart_measures_nothing(cache: Path, models: Sequence[Model]) -> None:
    """Equal costs show that nothing was measured again."""
    first, again = place(models), place(models)
    assert first.costs == again.costs
    assert (first.precision, again.precision) == ("float32", "float32")
    kept(cache).write_text("damaged")
    anew = place(models)
    assert anew.costs != first.costs
    assert place(models).costs == anew.costs


@pytest.mark.parametrize(
    "changed",
    [{"threads": 2}, {"max_batch": 3}, {"precision": "auto"}],
    ids=lambda changed: str(*changed),
)
def test_a_start_with_other_settings_measures(
    changed: dict[str, int], cache: Path, models: Sequence[Model]
) -> None:
    first = place(models)
    assert place(models, **changed).costs != first.costs  # type: ignore[arg-type]  # checked there
    assert len([*cache.iterdir()]) == 2
    assert place(models).costs == first.costs


def test_a_start_with_other_models_measures(cache: Path, models: Sequence[Model]) -> None:
    place(models)
    others = [
        [replace(models[0], sha256="1" * 64)],
        [small.converted(small.preprocessed(toy(), channels="RGB"))],
        [*models, *models],
    ]
    for number, other in enumerate(others, 2):
        place(other)
        assert len([*cache.iterdir()]) == number


def test_without_a_cache_every_start_measures(
    models: Sequence[Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert place(models).costs != place(models).costs

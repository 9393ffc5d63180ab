"""Converted files in the store: validity and repeated conversion."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import small
from batches import batch, cuts, noise, whole
from conftest import ROOT

from service.engine import converter, engine
from service.errors import NotConverted
from service.models import converted_model
from service.models.converted_model import Converted
from service.models.store import FLOATS, INT8, RECORD, Store
from service.settings import Settings

NAME = "small"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Converted]:
    """A store with a small model, and its converted file."""
    store = small.stored(tmp_path_factory.mktemp("made"), "lenet5")
    converter.convert(store, NAME)
    return store, converted_model.read(store, NAME, store.verify(NAME))


@pytest.fixture
def store(made: tuple[Store, Converted], tmp_path: Path) -> Store:
    """A copy of that store for one test."""
    for file in made[0].root.glob(f"{NAME}/*"):
        tmp_path.joinpath(NAME).mkdir(exist_ok=True)
        tmp_path.joinpath(NAME, file.name).write_bytes(file.read_bytes())
    return Store(tmp_path, tmp_path / "nothing")


def path(store: Store, file: str = FLOATS) -> Path:
    return store.root / NAME / file


def publish(store: Store, model: Converted, file: str = FLOATS, **changes: str) -> None:
    """Store it with another description."""
    described = model.description.model_copy(update=changes)
    changed = Converted(described, model.graph, model.constants)
    with store.locked(NAME):
        converted_model.publish(store, NAME, changed, file)


def test_published_file_is_read(store: Store, made: tuple[Store, Converted]) -> None:
    _, model = made
    publish(store, model, INT8)
    for file in (FLOATS, INT8):
        found = converted_model.read(store, NAME, store.verify(NAME), file)
        assert found == model
        assert (path(store, file).parent / f"{file}{RECORD}").read_text().endswith(f"  {file}\n")


# Damage.


def missing(store: Store) -> None:
    path(store).unlink()


def changed(store: Store) -> None:
    """Change one byte in the middle, so that the SHA-256 differs."""
    content = bytearray(path(store).read_bytes())
    content[len(content) // 2] ^= 1
    path(store).write_bytes(content)


def cut_short(store: Store) -> None:
    path(store).write_bytes(path(store).read_bytes()[:-100])


def unrecorded(store: Store) -> None:
    path(store, FLOATS + RECORD).unlink()


def no_archive(store: Store) -> None:
    """Write a file that is no archive, with its SHA-256."""
    with store.locked(NAME):
        store.publish(NAME, lambda file: file.write_bytes(b"nothing of the kind"), FLOATS)


def incomplete(store: Store) -> None:
    """An archive without the graph."""

    def write(file: Path) -> None:
        with zipfile.ZipFile(path(store)) as old, zipfile.ZipFile(file, "w") as new:
            new.writestr("model.json", old.read("model.json"))

    with store.locked(NAME):
        store.publish(NAME, write, FLOATS)


DAMAGES = [missing, changed, cut_short, unrecorded, no_archive, incomplete]


@pytest.mark.parametrize("damage", DAMAGES)
def test_missing_or_damaged_file_is_an_error_until_it_is_converted_again(
    damage: Callable[[Store], None], store: Store, made: tuple[Store, Converted]
) -> None:
    damage(store)
    with pytest.raises(NotConverted) as caught:
        converted_model.read(store, NAME, store.verify(NAME))
    sentence = str(caught.value)
    if damage is missing:
        assert sentence == f"{NAME!r} has no {FLOATS}"
    else:
        assert sentence.startswith(f"{FLOATS} of {NAME!r} is damaged: ")
    assert "\n" not in sentence
    assert converter.convert(store, NAME)
    again = converted_model.read(store, NAME, store.verify(NAME))
    assert again.description == made[1].description
    assert again.constants == made[1].constants


def test_file_of_other_weights_is_refused(store: Store, made: tuple[Store, Converted]) -> None:
    """As after fine-tuning, or a file copied from another model."""
    publish(store, made[1], weights="0" * 64)
    with pytest.raises(NotConverted, match="was made from other weights"):
        converted_model.read(store, NAME, store.verify(NAME))
    small.save(store, NAME, architecture="lenet5", width=1, seed=1)
    assert converter.convert(store, NAME)
    found = converted_model.read(store, NAME, store.verify(NAME))
    assert found.description.weights == store.verify(NAME)
    assert found.constants != made[1].constants


def test_file_by_another_converter_is_converted_again(
    store: Store, made: tuple[Store, Converted]
) -> None:
    publish(store, made[1], converter="format 1, OpenVINO 1999.1")
    with pytest.raises(NotConverted, match="by another version of the converter"):
        converted_model.read(store, NAME, store.verify(NAME))
    assert converter.convert(store, NAME)
    found = converted_model.read(store, NAME, store.verify(NAME))
    assert found.description.converter == converted_model.converter()


def test_quantized_file_by_another_converter_is_kept(
    store: Store, made: tuple[Store, Converted]
) -> None:
    """Quantizing again would need the calibration images."""
    publish(store, made[1], INT8, converter="format 1, OpenVINO 1999.1")
    assert converted_model.read(store, NAME, store.verify(NAME), INT8).graph == made[1].graph


# Served.


def answer(store: Store, device: str = "cpu") -> np.ndarray:
    chosen = Settings(model=NAME, model_store=store.root, device=device, precision="float32",
                      max_batch=1, cpu_threads=1)  # fmt: skip
    (found,) = engine.load(chosen).executors[0].run(batch(whole(cuts(noise(0), "single"))))
    assert isinstance(found, np.ndarray)
    return found


def test_serves_the_file_that_was_converted_again(
    store: Store, made: tuple[Store, Converted]
) -> None:
    """The file of other weights is not served."""
    small.save(store, NAME, architecture="lenet5", width=1, seed=1)
    found = answer(store)
    assert found == pytest.approx(answer(store, "torch-cpu"), abs=1e-4)
    assert np.abs(found - answer(made[0])).max() > 0.01


# Without PyTorch.

CLASSIFY = ("classify", "--model=small", "--device=cpu", "--precision=float32", "--cpu-threads=1")


def without_torch(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the service where there is no PyTorch, nor in the processes it starts."""
    (folder / "sitecustomize.py").write_text(
        "import sys\nfor name in ('torch', 'torchvision', 'nncf'): sys.modules[name] = None\n"
    )
    return subprocess.run(  # noqa: S603 - ourselves
        [sys.executable, "-m", "service", *command],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_without_pytorch_a_file_by_another_converter_is_served_as_is(
    store: Store, made: tuple[Store, Converted], shared: Path
) -> None:
    publish(store, made[1], converter="format 1, OpenVINO 1999.1")
    photo = str(shared / "photos/flickr/beagle.jpg")
    done = without_torch(store.root, *CLASSIFY, f"--model-store={store.root}", photo, "--json")
    assert done.returncode == 0, done.stderr
    assert '"label"' in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("damage", [missing, changed])
def test_without_pytorch_a_necessary_conversion_is_an_error(
    damage: Callable[[Store], None], store: Store, shared: Path
) -> None:
    damage(store)
    photo = str(shared / "photos/flickr/beagle.jpg")
    done = without_torch(store.root, *CLASSIFY, f"--model-store={store.root}", photo, "--json")
    assert done.returncode == 1
    assert not done.stdout
    (sentence,) = filter(None, done.stderr.splitlines())
    assert FLOATS in sentence
    assert sentence.endswith(
        "; converting it needs PyTorch: pip install 'googlenet-service[torch]'"
    )

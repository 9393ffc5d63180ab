"""A training from end to end: folders of images in, a model that is served out."""

import csv
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, needs_gpu, wait_ready
from PIL import Image
from starlette.testclient import TestClient

from service.__main__ import main
from service.bench.process import free_port
from service.engine import weights
from service.errors import ModelError
from service.models import store
from service.models.manifest import Calibration
from service.models.store import Store
from service.server.app import create_app
from service.settings import Settings
from service.training import dataset, report, run, trainer
from service.training.options import Options
from service.training.process_group import ProcessGroup
from service.training.run import Callbacks, TrainedModel
from service.training.trainer import Epoch, Trainer

TINY = {"width": 0.05, "batch": 6, "epochs": 2, "workers": 2}
Captured = pytest.CaptureFixture[str]


def draw_stripes(root: Path, count: int) -> Path:
    """Draw images of two classes that are easily distinguished: stripes across, and down."""
    random = np.random.default_rng(0)
    for name in ("across", "down"):
        (root / name).mkdir()
        for number in range(count):
            light, dark = random.integers(150, 256, 3), random.integers(0, 100, 3)
            rows = np.where(np.arange(40)[:, None] // 5 % 2, light, dark).astype(np.uint8)
            pixels = np.tile(rows[:, None], (1, 40, 1))
            if name == "down":
                pixels = pixels.transpose(1, 0, 2)
            Image.fromarray(np.ascontiguousarray(pixels)).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of twelve images each."""
    return draw_stripes(tmp_path_factory.mktemp("images"), 12)


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text("utf-8").splitlines()))


def options(images: Path, name: str = "stripes", **chosen: object) -> Options:
    return Options.model_validate({"folder": images, "name": name, **TINY, **chosen})


def settings(root: Path, **chosen: object) -> Settings:
    return Settings.model_validate(
        {"model_store": root, "device": "cpu", "precision": "float32", **chosen}
    )


def train(root: Path, chosen: Options, callbacks: Callbacks | None = None) -> TrainedModel:
    model = run.train(settings(root), chosen, "the command", callbacks or Callbacks())
    assert model is not None
    return model


def command(images: Path, store: Path, **changed: object) -> list[str]:
    """The arguments of `train` for a tiny model."""
    flags = [f"--{name}={value}" for name, value in {**TINY, **changed}.items()]
    where = ["--name", "stripes", "--device=cpu", f"--model-store={store}"]
    return ["train", str(images), *where, *flags]


@pytest.fixture(scope="module")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainedModel]:
    """A store with a model, and what came of its training."""
    root = tmp_path_factory.mktemp("store")
    chosen = options(images, description="stripes", licence="none", notice="Only stripes.")
    return root, train(root, chosen)


@pytest.mark.slow
def test_the_entry_in_the_store_is_complete(
    trained: tuple[Path, TrainedModel], images: Path
) -> None:
    root, outcome = trained
    where = store.locate(root)
    described = where.manifest("stripes")
    assert where.verify("stripes") == outcome.sha256
    assert [label.name for label in where.labels("stripes")] == ["across", "down"]
    assert (described.description, described.licence) == ("stripes", "none")
    assert described.notice == "Only stripes."
    assert described.width == 0.05
    assert described.training is not None
    assert described.training.command == "the command"
    assert (described.training.images, described.training.held_out) == (20, 4)
    assert re.fullmatch(r"[0-9a-f]{64}", described.training.fingerprint)
    assert described.training.epochs == outcome.best.epoch
    assert described.calibration is outcome.calibration is None  # of 4 images
    assert "100 labelled images or more, and here are 4:" in outcome.uncalibrated
    (accuracy,) = described.accuracy
    assert accuracy.top1 == round(outcome.best.held_out_top1, 2)
    assert accuracy.top5 == 100
    assert described.preprocessing.channels == "RGB"
    mean = np.mean([np.asarray(Image.open(path)) for path in images.glob("*/*")], (0, 1, 2))
    assert described.preprocessing.mean == pytest.approx(mean, abs=15)
    assert not (root / "stripes/training/checkpoint.pt").exists()


def test_tables_and_charts_show_history_and_confusion(
    trained: tuple[Path, TrainedModel],
) -> None:
    root, outcome = trained
    folder = root / "stripes/training"
    assert outcome.folder == folder
    names = ["classes.csv", "confusion.png", "curves.png", "history.csv"]
    assert sorted(path.name for path in folder.iterdir()) == names
    rows = table(folder / "history.csv")
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[0]["rate"]) == 0.002
    assert float(rows[outcome.best.epoch - 1]["held_out_loss"]) == pytest.approx(
        outcome.best.held_out_loss, abs=1e-4
    )
    classes = table(folder / "classes.csv")
    assert [(row["class"], row["images"]) for row in classes] == [("across", "2"), ("down", "2")]
    for name in ("curves", "confusion"):
        with Image.open(folder / f"{name}.png") as chart:
            assert min(chart.size) > 300
            assert len(chart.convert("RGB").getcolors(1 << 20) or []) > 10


@pytest.mark.slow
def test_it_is_served_with_its_labels_and_its_notice(
    trained: tuple[Path, TrainedModel], images: Path
) -> None:
    root, outcome = trained
    chosen = settings(root, model="stripes", max_batch=2, cpu_threads=1)
    with TestClient(create_app(chosen)) as client:
        wait_ready(client)
        file = (images / "down/3.png").read_bytes()
        answer = client.post("/classify?views=single", files={"file": file}).json()
        assert answer["notice"] == "Only stripes."
        labels = {prediction["label"] for prediction in answer["predictions"]}
        assert labels == {"across", "down"}
        several = client.post("/classify?views=single", files=[("file", file)] * 2).json()
        assert several["notice"] == "Only stripes."
        (served,) = client.get("/models").json()["models"]
        assert served["notice"] == "Only stripes."
        assert served["members"][0]["sha256"] == outcome.sha256
        verbose = client.get("/readyz?verbose").text
        assert verbose == "[+]model ok\n[+]worker ok\n[+]stop ok\n[i]notice Only stripes.\nok\n"


def test_probabilities_are_those_of_its_temperature(
    trained: tuple[Path, TrainedModel], tmp_path: Path
) -> None:
    root = tmp_path / "store"
    shutil.copytree(trained[0], root)
    where = store.locate(root)
    fitted = Calibration(temperature=2, sha256=trained[1].sha256, images=100, error=(0.2, 0.1))
    where.calibrate("stripes", fitted)
    assert weights.load(where, "stripes").temperature == 2
    where.calibrate("stripes", fitted.model_copy(update={"sha256": "0" * 64}))
    assert weights.load(where, "stripes").temperature == 1  # it was fitted for other weights


def test_progress_is_reported_until_it_stops_without_improvement(
    images: Path, tmp_path: Path
) -> None:
    looked: list[tuple[int, int]] = []
    stepped: list[tuple[int, int, int]] = []
    ended: list[int] = []
    classes: list[Sequence[str]] = []
    outcome = train(
        tmp_path,
        options(images, rate=1e-30, average=0, epochs=9, patience=2),
        Callbacks(
            lambda *done: looked.append(done),
            lambda found: classes.append(found.classes),
            lambda *done: stepped.append(done),
            lambda epoch: ended.append(epoch.epoch),
        ),
    )
    assert looked[-1] == (24, 24)
    assert classes == [("across", "down")]
    assert stepped == [(epoch, step, 3) for epoch in (1, 2, 3) for step in (1, 2, 3)]
    assert (ended, outcome.best.epoch) == ([1, 2, 3], 1)


@pytest.mark.parametrize(
    ("chosen", "sentence"),
    [
        ({"rate": 1e9}, "in epoch 1 the loss is not finite; a smaller"),
        ({"architecture": "resnet5"}, "there is no architecture 'resnet5'"),
        ({"architecture": "resnet18"}, "resnet18 comes in width 1 only"),
        # The network and width of that model, which are no reason to refuse.
        (
            {"from": "bvlc_googlenet", "architecture": "googlenet", "width": 1},
            "The weights of 'bvlc_googlenet' are not in",
        ),
    ],
)
def test_a_training_that_cannot_be_done_is_an_error(
    chosen: dict[str, Any], sentence: str, images: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=sentence):
        train(tmp_path, options(images, **chosen))


def test_a_taken_name_is_an_error(trained: tuple[Path, TrainedModel], images: Path) -> None:
    with pytest.raises(ModelError, match="there is a model 'stripes' already; choose another"):
        train(trained[0], options(images))


def test_it_does_not_start_without_matplotlib(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModelError, match=r"pip install 'googlenet-service\[train\]'"):
        train(tmp_path, options(images))
    assert not [*tmp_path.iterdir()]


# Interrupted.


class Cut(Exception):
    """Interrupts a training."""


@pytest.mark.slow
@pytest.mark.parametrize("place", [(1, 2), (2, 1)])
def test_an_interrupted_training_gives_the_same_model(
    place: tuple[int, int],
    trained: tuple[Path, TrainedModel],
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trainer, "SAVE_SECONDS", 0.0)
    began: list[tuple[int, int]] = []

    def stepped(epoch: int, step: int, _: int) -> None:
        began.append((epoch, step))
        if (epoch, step) == place and began.count(place) == 1:
            raise Cut

    chosen = options(images, description="stripes", licence="none", notice="Only stripes.")
    with pytest.raises(Cut):
        train(tmp_path, chosen, Callbacks(step_done=stepped))
    assert "stripes" not in store.locate(tmp_path).names()
    cut_at = len(began)
    outcome = train(tmp_path, chosen, Callbacks(step_done=stepped))
    assert (1, 1) not in began[cut_at:]  # it resumed
    assert outcome.sha256 == trained[1].sha256
    assert outcome.calibration == trained[1].calibration


@pytest.mark.slow
def test_a_killed_training_resumes(images: Path, tmp_path: Path, capsys: Captured) -> None:
    """The real command, killed with SIGKILL."""
    arguments = command(images, tmp_path, precision="float32")
    program = [sys.executable, "-m", "service", *arguments]
    history = tmp_path / "stripes/training/history.csv"
    first = subprocess.Popen(program, cwd=ROOT, stderr=subprocess.DEVNULL)  # noqa: S603 - ourselves
    while first.poll() is None and not history.exists():
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    assert (tmp_path / "stripes/training/checkpoint.pt").exists()
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert "epoch 1:" not in printed.err
    assert "epoch 2:" in printed.err
    assert "stripes is in the store" in printed.out


def test_a_checkpoint_of_other_images_or_options_is_an_error(images: Path, tmp_path: Path) -> None:
    def stepped(epoch: int, *_: int) -> None:
        if epoch == 2:
            raise Cut

    with pytest.raises(Cut):
        train(tmp_path, options(images), Callbacks(step_done=stepped))
    with pytest.raises(ModelError, match="of a training with other options or images"):
        train(tmp_path, options(images, rate=0.003))
    assert train(tmp_path, options(images, epochs=3, patience=3)).best.epoch <= 3


# Several processes.


@pytest.mark.slow
def test_two_processes_train_as_one_does(images: Path, tmp_path: Path, capsys: Captured) -> None:
    """Under torchrun, on the CPU; without dropout, which each process draws by itself."""
    roots = [tmp_path / "one", tmp_path / "two"]
    one, two = (
        command(images, root, dropout=0.0, rate=0.0001, precision="float32") for root in roots
    )
    assert main(one) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m"]
    done = subprocess.run(  # noqa: S603 - ourselves
        [*launch, "service", *two], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for out, err in (capsys.readouterr(), (done.stdout, done.stderr)):
        assert err.count("2 classes, 20 images to train on") == 1
        assert err.count("epoch 2:") == 1
        assert out.count("is in the store") == 1
    losses = [
        [float(row[name]) for row in table(root / "stripes/training/history.csv")
         for name in ("loss", "held_out_loss")]
        for root in roots
    ]  # fmt: skip
    assert losses[1][0] == pytest.approx(losses[0][0], rel=1e-4)
    # What two sum up in another order differs a little, and more with every step.
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.slow
def test_the_second_process_prints_nothing(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """It is the test's own, as `torchrun` would have started it."""
    group = {"TORCHELASTIC_RUN_ID": "a test", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
             "MASTER_PORT": str(free_port())}  # fmt: skip
    theirs, ours = ({"RANK": n, "LOCAL_RANK": n} for n in "01")
    arguments = command(images, tmp_path)
    other = subprocess.Popen(  # noqa: S603 - ourselves
        [sys.executable, "-m", "service", *arguments], cwd=ROOT,
        env={**os.environ, **group, **theirs}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    for name, value in {**group, **ours}.items():
        monkeypatch.setenv(name, value)
    assert main(arguments) == 0
    assert other.wait(60) == 0
    printed = capsys.readouterr()
    assert "stripes is in the store" not in printed.out
    assert "epoch 2:" not in printed.err
    assert store.locate(tmp_path).has("stripes")


def test_a_batch_that_cannot_be_shared_equally_is_an_error(images: Path) -> None:
    data = dataset.read(images, 0.2, max_pixels=10**6, progress=lambda *_: None)
    two = ProcessGroup(0, 2, torch.device("cpu"))
    with pytest.raises(ModelError, match="a batch of 5 images cannot be shared equally by 2"):
        run._check_batch(options(images, batch=5), data, two)  # noqa: SLF001 - needs two processes


# From a start model.

BIRDS = ("junco", "vulture", "prairie_chicken", "hornbill", "bittern", "oystercatcher")
DOGS = ("Maltese_dog", "bloodhound", "Ibizan_hound", "Irish_setter", "schipperke", "basenji")
THINGS = ("bookcase", "chiffonier", "crutch", "dumbbell", "photocopier", "radiator")


@pytest.fixture(scope="module")
def coarse(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the shared photos in three coarse classes."""
    root = tmp_path_factory.mktemp("coarse")
    for name, labels in {"bird": BIRDS, "dog": DOGS, "thing": THINGS}.items():
        (root / name).mkdir()
        for label in labels:
            (photo,) = (shared / "photos").glob(f"n*_{label}.JPEG")
            shutil.copy(photo, root / name)
    return root


@pytest.mark.parametrize("freeze", [None, "inception.5b"])
@pytest.mark.slow
def test_a_model_goes_on_from_another_with_labels_of_its_own(
    freeze: str | None, coarse: Path, real_store: Store
) -> None:
    name = f"coarse_{'frozen' if freeze else 'whole'}"
    chosen = Options.model_validate({
        "folder": coarse, "name": name, "from": "bvlc_googlenet", "freeze": freeze,
        "epochs": 5, "batch": 4, "held_out": 0.34, "average": 0.5, "smallest": 0.5,
    })  # fmt: skip
    outcome = train(real_store.root, chosen)
    before = weights.load(real_store, "bvlc_googlenet")
    after = weights.load(real_store, name)
    assert outcome.best.held_out_top1 >= 80  # a third of the images is a class
    assert [label.name for label in after.labels] == ["bird", "dog", "thing"]
    assert after.manifest.preprocessing == before.manifest.preprocessing
    same = [torch.equal(value, before.state[n]) for n, value in after.state.items() if n[0] != "l"]
    assert all(same) if freeze else not any(same)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of three images each, for large networks."""
    return draw_stripes(tmp_path_factory.mktemp("few"), 3)


def test_any_network_can_be_learnt_from_nothing(few: Path, tmp_path: Path) -> None:
    """One that insists on the version of its parameters, and has batch norm."""
    chosen = options(few, architecture="mnasnet0_5", width=1, epochs=1)
    outcome = train(tmp_path, chosen)
    model = weights.load(store.locate(tmp_path), "stripes")
    assert model.manifest.architecture == "mnasnet0_5"
    assert model.sha256 == outcome.sha256
    mean = model.state["layers.1.running_mean"]
    assert mean.any()
    assert math.isfinite(outcome.best.held_out_loss)


@pytest.mark.slow
def test_torchvisions_network_is_trained_on_as_well(few: Path, tmp_path: Path) -> None:
    """Batch norm, counters and all; from weights of chance, since its own are not here."""
    where = Store(tmp_path, ROOT / "model_store")
    described = where.manifest("googlenet")
    state = {name: value.float() for name, value in weights.build(described).state_dict().items()}
    with where.locked("googlenet"):
        weights.save(where, "googlenet", state, source="chance")
    outcome = train(tmp_path, options(few, **{"from": "googlenet", "width": 1, "epochs": 1}))
    model = weights.load(where, "stripes")
    assert model.sha256 == outcome.sha256
    assert model.manifest.architecture == "torchvision_googlenet"
    assert model.manifest.preprocessing == described.preprocessing
    mean = model.state["inception5b.branch1.bn.running_mean"]
    assert not torch.equal(mean, state["inception5b.branch1.bn.running_mean"])


@needs_gpu
def test_it_trains_on_a_gpu_in_half_precision(images: Path, tmp_path: Path) -> None:
    chosen = settings(tmp_path, device="cuda", precision="auto")
    outcome = run.train(chosen, options(images), "the command", Callbacks())
    assert outcome is not None
    assert math.isfinite(outcome.best.loss)


@pytest.mark.parametrize(
    ("other", "has"), [("architecture lenet5", "googlenet"), ("width 0.5", "1.0")]
)
def test_a_start_model_and_another_network_are_an_error(
    other: str, has: str, images: Path, tmp_path: Path, capsys: Captured
) -> None:
    option, wanted = other.split()
    start = ["train", str(images), "--name", "mine", "--from", "bvlc_googlenet"]
    assert main([*start, f"--{option}", wanted, "--model-store", str(tmp_path)]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (  # after the bar
        f"googlenet-service: --{other} is for a new network, and 'bvlc_googlenet' has"
        f" {option} {has}: leave out --{option}, or --from"
    )
    assert not [*tmp_path.iterdir()]


# The command.


def test_the_command_prints_its_results(images: Path, tmp_path: Path, capsys: Captured) -> None:
    (images / "down/notes.txt").write_text("to do")
    try:
        assert main(command(images, tmp_path, epochs=1, mirror="no")) == 0
    finally:
        (images / "down/notes.txt").unlink()
    printed = capsys.readouterr()
    assert "2 classes, 20 images to train on, 4 held out" in printed.err
    assert "notes.txt: not an image (.txt)" in printed.err
    assert re.search(r"epoch 1: loss \d\.\d{3}, held out \d\.\d{3}, right \d+\.\d %", printed.err)
    assert re.search(r"stripes is in the store, SHA-256 [0-9a-f]{64}: right on", printed.out)
    assert "is not calibrated: a temperature is fitted to 100 labelled images" in printed.out
    described = store.locate(tmp_path).manifest("stripes")
    assert described.training is not None
    assert described.training.command.startswith(f"googlenet-service train {images} --name")
    assert described.description == f"trained on {images.name}"
    assert not described.preprocessing.mirror


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (["--name", "No Name"], "--name: String should match pattern"),
        (["--name", "x", "--epochs", "0"], "--epochs: Input should be greater than or equal"),
        (["--name", "x", "--from", "nothing"], "there is no model 'nothing'"),
    ],
)
def test_a_wrong_command_line_is_an_error(
    wrong: list[str], sentence: str, images: Path, tmp_path: Path, capsys: Captured
) -> None:
    assert main(["train", str(images), *wrong, "--model-store", str(tmp_path)]) in {1, 2}
    assert sentence in capsys.readouterr().err


# Reports.


def test_a_confusion_counts_predictions_by_class(tmp_path: Path) -> None:
    logits = np.array([[2.0, 1, 0], [0, 1, 2], [0, 1, 2], [0, 3, 0]])
    counts = report.confusion(logits, np.array([0, 0, 2, 1]))
    assert counts.tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 1]]
    report.write_classes(tmp_path / "classes.csv", ["a", "b, c", "d"], counts)
    assert (tmp_path / "classes.csv").read_text() == (
        'class,images,precision,recall\na,2,1.0,0.5\n"b, c",1,1.0,1.0\nd,1,0.5,1.0\n'
    )


def test_a_chart_of_many_classes_has_no_numbers(tmp_path: Path) -> None:
    classes = [f"class {number}" for number in range(report.NUMBERED + 1)]
    counts = np.eye(len(classes), dtype=np.int64) * 5
    report.draw_confusion(tmp_path / "chart.png", classes, counts, "many")
    with Image.open(tmp_path / "chart.png") as chart:
        assert chart.width > 1000


def test_the_best_epoch_is_the_first_of_the_least_loss() -> None:
    unused = object.__new__(Trainer)
    unused.history = [
        Epoch(number, 0.1, 1.0, loss, 50.0, 1.0, 0.0) for number, loss in enumerate([3, 1, 1, 2], 1)
    ]
    assert unused.best_epoch.epoch == 2

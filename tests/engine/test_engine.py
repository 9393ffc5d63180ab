"""The engine: loading and results, by OpenVINO on a CPU or by PyTorch."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import small
import torch
from batches import batch, cuts, expected_views, noise, whole
from conftest import ROOT
from PIL import Image

from service.engine import converter, engine, weights
from service.engine.engine import Engine
from service.engine.prepared_image import PreparedImage
from service.engine.torch_network import Normalise
from service.engine.weights import Model
from service.errors import InvalidParameter, MissingWeights, ModelError
from service.imaging import crops
from service.imaging.crops import CROP, DENSE, Resize
from service.imaging.image_decoder import Bounds, decode
from service.models.ensemble import Probabilities
from service.models.manifest import Calibration, PairedStopping, Stopping
from service.models.stopping_rule import LeadRule, PairedRule
from service.models.store import Store
from service.scheduling.cost_model import Key, LinearCost
from service.scheduling.types import Slice
from service.settings import Settings

NAME = "bvlc_googlenet"


def load(store: Store, *models: str, **chosen: object) -> Engine:
    """Load an engine of few sizes, on one core."""
    return engine.load(
        Settings.model_validate(
            {"model": ",".join(models), "model_store": store.root, "device": "cpu",
             "cpu_threads": 1,
             "precision": "float32", "max_batch": 2, **chosen}
        )
    )  # fmt: skip


def rank(served: Engine, image: Image.Image, name: str) -> npt.NDArray[np.float64]:
    """Run an image's jobs, a view at a time, and give the probabilities by class."""
    results = []
    for number, plan in enumerate(served.ensemble.plans(name)):
        payload = PreparedImage(plan, crops.canvases(image, plan))
        ones = [Slice(payload, at, at + 1) for at in range(len(plan.views))]
        results.append([served.executors[0].run(batch(one, member=number))[0] for one in ones])
    return by_class(served, results, name)


def by_class(
    served: Engine, results: Sequence[Sequence[Probabilities]], name: str
) -> npt.NDArray[np.float64]:
    ranked = served.ensemble
    ranking = ranked.rank(results, ranked.plans(name), len(ranked.labels))
    probabilities = np.zeros(len(ranking))
    for prediction in ranking:
        probabilities[prediction.index] = prediction.probability
    return probabilities


# Small models of three classes.


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with three models, which differ in their weights, preprocessing and labels."""
    root = tmp_path_factory.mktemp("store")
    store = Store(root, ROOT / "model_store")
    short = small.PREPROCESSING.model_copy(update={"resize": "short"})
    small.save(store, "one", seed=0)
    small.save(store, "two", seed=1, preprocessing=short)
    small.save(store, "other", seed=2, labels=small.CLASSES[::-1])
    for name in ("one", "two", "other"):
        converter.convert(store, name)
    return store


@pytest.fixture(scope="module")
def one(store: Store) -> Engine:
    """The first of them."""
    return load(store, "one", max_batch=10)


def test_split_job_has_the_same_sum(one: Engine) -> None:
    run = one.executors[0].run
    payload = cuts(noise(6), "paper")
    tens = [run(batch(Slice(payload, at, min(at + 10, 144))))[0] for at in range(0, 144, 10)]
    all_ = np.sum(tens, axis=0)
    places = [0, 5, 6, *range(7, 144, 8), 144]
    parts = [run(batch(Slice(payload, start, stop)))[0] for start, stop in pairwise(places)]
    assert np.sum(parts, axis=0) == pytest.approx(all_, abs=1e-5)
    assert all_.sum() == pytest.approx(144, abs=1e-4)
    assert by_class(one, [parts], "paper") == pytest.approx(all_ / 144, abs=1e-6)


def test_a_plan_with_stops_has_results_by_view(one: Engine) -> None:
    run = one.executors[0].run
    payload, summed = (cuts(noise(6), name) for name in ("adaptive", "ten"))
    other, some = run(batch(Slice(summed, 4, 5), Slice(payload, 0, 6)))
    (alone,) = run(batch(Slice(payload, 5, 6)))
    assert np.asarray(some).shape == (6, 3)
    assert np.asarray(some)[0] == pytest.approx(np.asarray(other), abs=1e-6)
    assert np.asarray(some)[5:] == pytest.approx(np.asarray(alone), abs=1e-5)


@pytest.fixture(scope="module")
def both(store: Store) -> Engine:
    """Two of them, averaged."""
    return load(store, "one", "two")


def test_members_are_averaged_after_their_views(one: Engine, both: Engine, store: Store) -> None:
    image = noise(7).resize((4, 4)).resize((300, 200))
    alone = [rank(served, image, "ten") for served in (one, load(store, "two"))]
    assert np.abs(alone[0] - alone[1]).max() > 1e-3
    assert rank(both, image, "ten") == pytest.approx(np.mean(alone, axis=0), abs=1e-6)


def test_engine_s_ensemble(both: Engine, store: Store) -> None:
    said = both.ensemble
    assert said.name == "one,two"
    assert (said.device, said.precision) == ("cpu", "float32")
    assert [member.sha256 for member in said.members] == [store.verify("one"), store.verify("two")]
    assert said.members[0].architecture == "googlenet"
    assert said.members[0].version == "1"
    assert [member.sides for member in said.members] == [(CROP, DENSE)] * 2
    assert [member.channels for member in said.members] == [50] * 2
    assert said.labels == store.labels("one")
    assert len(both.executors) == 2
    assert said.warmup_seconds > 0


def test_cpu_runs_any_batch_size(both: Engine, one: Engine) -> None:
    for served, largest in ((both, 2), (one, 10)):
        curves = served.ensemble.costs.curves
        members = range(len(served.ensemble.members))
        assert {*curves} == {
            Key(member, side, maps)
            for member in members
            for side in (CROP, DENSE)
            for maps in (False, True)
        }
        for key, curve in curves.items():
            assert isinstance(curve, LinearCost)
            assert curve.largest == (1 if key.maps else largest)
            assert curve.seconds(1) > 0


@pytest.mark.parametrize("threads", [1, 2])
def test_default_largest_batch_is_4_rows_for_each_thread(threads: int, store: Store) -> None:
    costs = load(store, "one", max_batch=0, cpu_threads=threads).ensemble.costs
    assert costs.largest(Key(0, CROP)) == 4 * threads


# Failing loads.


@pytest.mark.parametrize("device", ["cpu", "torch-cpu"])
def test_models_with_different_labels_are_refused(device: str, store: Store) -> None:
    with pytest.raises(ModelError, match="one and other have different labels"):
        load(store, "one", "two", "other", device=device)


def test_missing_device_is_refused(store: Store) -> None:
    with pytest.raises(ModelError, match="cuda:99"):
        load(store, "one", device="cuda:99")


@pytest.mark.parametrize("device", ["cpu", "torch-cpu"])
def test_a_model_without_weights_is_not_loaded(device: str, tmp_path: Path) -> None:
    with pytest.raises(MissingWeights, match=f"models fetch {NAME}"):
        load(Store(tmp_path, ROOT / "model_store"), NAME, device=device)


# The real weights.


@pytest.fixture(scope="module")
def model(real_store: Store) -> Model:
    """BVLC's GoogLeNet for PyTorch."""
    return weights.load(real_store, NAME)


@pytest.fixture(scope="module")
def real(real_store: Store) -> Engine:
    """An engine of it in float32, for up to four rows."""
    return load(real_store, NAME, max_batch=4)


@pytest.fixture(scope="module")
def photo(shared: Path) -> Image.Image:
    """A photo that is no square."""
    path = min((shared / "photos").glob("*.JPEG"))
    return decode(path.read_bytes(), max_pixels=10**8)


def test_image_is_decoded_once_for_all_members(real_store: Store, beagle: bytes) -> None:
    loaded = load(real_store, NAME, NAME)
    assert loaded.ensemble.name == f"{NAME},{NAME}"
    prepared = loaded.prepare(beagle, "single", Bounds(10**8))
    assert prepared[0] is prepared[1]
    results = [
        loaded.executors[0].run(batch(whole(one), member=n)) for n, one in enumerate(prepared)
    ]
    (best,) = loaded.ensemble.rank(results, loaded.ensemble.plans("single"), 1)
    assert best.label == "beagle"


def test_tensor_result_equals_its_view_s(real: Engine, beagle: bytes) -> None:
    """BGR minus 104, 117, 123, made with numpy of the view that the service cuts itself."""
    (cut,) = real.prepare(beagle, "single", Bounds(10**8))
    tensor = cut.canvases[0][:, :, ::-1].astype(np.float32) - np.float32([104, 117, 123])
    (came,) = real.prepare(tensor.transpose(2, 0, 1).copy(), "single", Bounds(1))
    run = real.executors[0].run
    expected, mixed = run(batch(whole(cut))), run(batch(whole(came), whole(cut)))
    assert mixed[0] == pytest.approx(expected[0], abs=1e-5)
    assert mixed[1] == pytest.approx(expected[0], abs=1e-5)
    assert np.argmax(mixed[0]) == 162
    with pytest.raises(InvalidParameter):
        real.prepare(tensor.transpose(2, 0, 1), "ten", Bounds(10**8))


def beagle_at_224(beagle: bytes) -> Image.Image:
    """The photo sampled bilinearly without antialiasing."""
    photo = decode(beagle, max_pixels=10**8)
    matrix = (photo.width / CROP, 0, 0, 0, photo.height / CROP, 0)
    affine, bilinear = Image.Transform.AFFINE, Image.Resampling.BILINEAR
    return photo.transform((CROP, CROP), affine, matrix, bilinear)


def test_beagle_probability_equals_an_independent_implementation_s(
    real: Engine, beagle: bytes
) -> None:
    """`shared/README.md`: resized straight to 224x224, class 162 at 0.811.

    It does not say how it was resized. Bilinear without antialiasing gives 0.811; Pillow's
    `resize`, which the service uses and which antialiases, gives 0.760.
    """
    payload = cuts(beagle_at_224(beagle), "single", Resize("warp", CROP))
    (best, *_) = real.ensemble.rank(
        [real.executors[0].run(batch(whole(payload)))], [payload.plan], 5
    )
    assert (best.index, best.label, best.wnid) == (162, "beagle", "n02088364")
    assert best.probability == pytest.approx(0.811, abs=0.005)


def test_result_equals_a_plain_numpy_preprocessing_s(
    model: Model, real: Engine, photo: Image.Image
) -> None:
    """BGR minus 104, 117, 123, planes first, with no part of the service but the network."""
    warped = photo.resize((256, 256), Image.Resampling.BILINEAR).crop((16, 16, 240, 240))
    bgr = np.asarray(warped, np.float32)[:, :, ::-1] - np.float32([104, 117, 123])
    with torch.inference_mode():
        logits = model.network()(torch.tensor(bgr.transpose(2, 0, 1).copy())[None])
    expected = logits.softmax(1)[0].numpy()
    assert rank(real, photo, "single") == pytest.approx(expected, abs=1e-4)


def test_probabilities_not_logits_are_averaged(
    model: Model, real: Engine, photo: Image.Image
) -> None:
    pixels = torch.from_numpy(np.stack(expected_views(whole(cuts(photo, "ten")))))
    with torch.inference_mode():
        x = Normalise(model.manifest.preprocessing, torch.float32)(pixels)
        logits = model.network()(x)
    expected = logits.softmax(1).mean(0)
    assert (logits.mean(0).softmax(0) - expected).abs().max() > 1e-3
    assert rank(real, photo, "ten") == pytest.approx(expected.numpy(), abs=1e-4)


def test_an_ensemble_has_the_stopping_rules_of_its_calibration(tmp_path: Path) -> None:
    store = Store(tmp_path, ROOT / "model_store")
    stopping = Stopping(lead=0.3, agreement=0.99, differences=1, views=2.5)
    paired = PairedStopping(standard_errors=4, agreement=0.99, differences=1, views=50)
    fitted = Calibration(
        temperature=1,
        sha256=store.verify("digits"),
        images=100,
        error=(0.1, 0.1),
        stopping=stopping,
        paired=paired,
    )
    assert load(store, "digits").ensemble.stopping_rule("adaptive") == LeadRule()
    with store.locked("digits"):
        store.calibrate("digits", fitted)
    calibrated = load(store, "digits").ensemble
    assert calibrated.stopping_rule("adaptive") == LeadRule(0.3)
    assert calibrated.stopping_rule("adaptive:paper") == PairedRule(4)

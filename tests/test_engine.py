"""Models from the store to rankings, on the real weights and on a network easy to reckon."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import needs_gpu
from PIL import Image
from test_forward import preprocessed, softmax, toy
from test_rows import SHORT, WARP, batch, cuts, expected_views, noise, whole

from service import engine, processors, views, weights
from service.costs import Key
from service.cuts import Cuts
from service.engine import Engine
from service.ensemble import Probabilities
from service.errors import InvalidParameter, MissingWeights, ModelError, TooLarge
from service.explanation import Activation
from service.images import Bounds, decode
from service.settings import Settings
from service.store import Store
from service.views import CROP, DENSE, Resize
from service.weights import Model
from service.work import Batch, Slice

STRAIGHT = Resize("warp", CROP)


def place(
    *models: Model, device: str = "cpu", precision: str = "float32", max_batch: int = 2
) -> Engine:
    return engine.place(
        models, device=device, precision=precision, max_batch=max_batch, executors=1
    )


def rank(served: Engine, picture: Image.Image, name: str) -> npt.NDArray[np.float64]:
    """Run a picture's jobs, a view at a time, and give the probabilities by class."""
    plans = served.ensemble.plans(name)
    results = []
    for number, plan in enumerate(plans):
        payload = Cuts(plan, views.canvases(picture, plan))
        ones = [Slice(payload, at, at + 1) for at in range(len(plan.views))]
        results.append([served.lanes[0].run(batch(one, member=number))[0] for one in ones])
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


def test_probabilities_and_not_logits_are_averaged_over_the_views() -> None:
    picture = noise(5).resize((8, 8)).resize((256, 256))
    payload = cuts(picture, "ten")
    mean = toy().manifest.preprocessing.mean
    each = [
        softmax(0.1 * (view.mean((0, 1))[::-1] - mean)) for view in expected_views(whole(payload))
    ]
    assert rank(place(toy()), picture, "ten") == pytest.approx(np.mean(each, axis=0), abs=1e-5)


def test_a_large_job_split_at_odd_places_has_the_same_sum() -> None:
    served = place(toy(), max_batch=10)
    run = served.lanes[0].run
    payload = cuts(noise(6), "paper")
    tens = [
        run(batch(Slice(payload, at, min(at + 10, 144)), size=10))[0] for at in range(0, 144, 10)
    ]
    all_ = np.sum(tens, axis=0)
    places = [0, 5, 6, *range(7, 144, 8), 144]
    parts = [run(batch(Slice(payload, start, stop), size=8))[0] for start, stop in pairwise(places)]
    assert np.sum(parts, axis=0) == pytest.approx(all_, abs=1e-5)
    assert all_.sum() == pytest.approx(144, abs=1e-4)
    assert by_class(served, [parts], "paper") == pytest.approx(all_ / 144, abs=1e-6)


def test_members_are_averaged_after_their_views() -> None:
    other = replace(toy(), name="other", state={"sharpness": torch.tensor(0.03)})
    picture = noise(7).resize((4, 4)).resize((300, 200))
    alone = [rank(place(model), picture, "ten") for model in (toy(), other)]
    together = rank(place(toy(), other), picture, "ten")
    assert np.abs(alone[0] - alone[1]).max() > 1e-3
    assert together == pytest.approx(np.mean(alone, axis=0), abs=1e-7)


def test_members_may_resize_in_their_own_ways() -> None:
    served = place(toy(), preprocessed(toy(), resize="short"))
    assert [member.resize for member in served.ensemble.members] == [WARP, SHORT]
    assert served.ensemble.plans("ten") == (views.plan("ten", WARP), views.plan("ten", SHORT))


def test_models_with_different_labels_are_refused() -> None:
    other = replace(toy(), name="other", labels=toy().labels[::-1])
    with pytest.raises(ModelError, match="toy and other have different labels"):
        place(toy(), toy(), other)


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ModelError, match="cuda:99"):
        place(toy(), device="cuda:99")


def test_an_engine_says_what_it_is() -> None:
    served = place(toy(), replace(toy(), name="other", sha256="1" * 64))
    said = served.ensemble
    assert said.name == "toy,other"
    assert (said.device, said.precision) == ("cpu", "float32")
    assert [member.sha256[0] for member in said.members] == ["0", "1"]
    assert said.members[0].architecture == "googlenet"
    assert said.members[0].version == toy().manifest.version
    assert said.labels == toy().labels
    assert len(served.lanes) == 1
    assert said.warmup_seconds > 0


@pytest.mark.parametrize("executors", [1, 3])
def test_as_many_batches_are_run_side_by_side_as_was_asked_for(executors: int) -> None:
    served = engine.place(
        [toy()], device="cpu", precision="float32", max_batch=1, cores=3, executors=executors
    )
    assert len([lane for lane in served.lanes if not lane.alone]) == executors


def test_no_more_batches_are_run_side_by_side_than_there_are_cores() -> None:
    served = engine.place(
        [toy()], device="cpu", precision="float32", max_batch=1, cores=2, executors=9
    )
    assert len([lane for lane in served.lanes if not lane.alone]) == 2


def test_unless_it_is_said_how_many_cores_are_there_all_are_shared_out() -> None:
    served = engine.place([toy()], device="cpu", precision="float32", max_batch=1, executors=10**6)
    assert len([lane for lane in served.lanes if not lane.alone]) == processors.available()


def test_every_size_of_every_key_is_timed() -> None:
    costs = place(toy(), toy(), max_batch=3).ensemble.costs.seconds
    assert set(costs) == {Key(member, side) for member in (0, 1) for side in (CROP, DENSE)}
    assert all(set(buckets) == {1, 2, 3} for buckets in costs.values())
    assert all(cost > 0 for buckets in costs.values() for cost in buckets.values())


# The real weights.


@pytest.fixture(scope="module")
def model(real_store: Store) -> Model:
    """BVLC's GoogLeNet."""
    return weights.load(real_store, "bvlc_googlenet")


@pytest.fixture(scope="module")
def real(model: Model) -> Engine:
    """It alone, exact, for up to four rows."""
    return place(model, max_batch=4)


@pytest.fixture(scope="module")
def photos(shared: Path) -> list[Image.Image]:
    """A few photos of different classes and shapes."""
    paths = sorted((shared / "photos").glob("*.JPEG"))[::20]
    return [decode(path.read_bytes(), max_pixels=10**8) for path in paths]


def small(store: Path, *models: str) -> Settings:
    """Settings of an engine that is soon loaded."""
    return Settings(
        model=",".join(models),
        store=store,
        device="cpu",
        precision="float32",
        max_batch=1,
        cores=4,
        executors=3,
    )


def test_an_engine_is_loaded_as_the_settings_say_and_answers(
    real_store: Store, beagle: bytes
) -> None:
    loaded = engine.load(small(real_store.root, "bvlc_googlenet", "bvlc_googlenet"))
    assert loaded.ensemble.name == "bvlc_googlenet,bvlc_googlenet"
    assert (loaded.ensemble.device, loaded.ensemble.precision) == ("cpu", "float32")
    assert all({*sizes} == {1} for sizes in loaded.ensemble.costs.seconds.values())
    lane, *others = [lane for lane in loaded.lanes if not lane.alone]
    assert len(others) == 2
    prepared = loaded.prepare(beagle, "single", Bounds(10**8))
    results = [lane.run(batch(whole(one), member=n)) for n, one in enumerate(prepared)]
    (best,) = loaded.ensemble.rank(results, loaded.ensemble.plans("single"), 1)
    assert best.label == "beagle"


def test_pictures_have_as_many_pixels_as_may_be(real: Engine, beagle: bytes) -> None:
    with pytest.raises(TooLarge):
        real.prepare(beagle, "single", Bounds(1000))


def test_a_tensor_is_answered_as_the_view_that_it_was_made_of(real: Engine, beagle: bytes) -> None:
    """BGR minus 104, 117, 123, made with numpy of the view that the service cuts itself."""
    (cut,) = real.prepare(beagle, "single", Bounds(10**8))
    tensor = cut.canvases[0][:, :, ::-1].astype(np.float32) - np.float32([104, 117, 123])
    (came,) = real.prepare(tensor.transpose(2, 0, 1).copy(), "single", Bounds(1))
    run = real.lanes[0].run
    expected, mixed = run(batch(whole(cut))), run(batch(whole(came), whole(cut)))
    assert mixed[0] == pytest.approx(expected[0], abs=1e-5)
    assert mixed[1] == pytest.approx(expected[0], abs=1e-5)
    assert mixed[0].argmax() == 162
    with pytest.raises(InvalidParameter):
        real.prepare(tensor.transpose(2, 0, 1), "ten", Bounds(10**8))


def test_a_model_without_weights_is_not_loaded(tmp_path: Path) -> None:
    with pytest.raises(MissingWeights, match="models fetch bvlc_googlenet"):
        engine.load(small(tmp_path, "bvlc_googlenet"))


def beagle_at_224(beagle: bytes) -> Image.Image:
    """The photo sampled bilinearly without antialiasing."""
    photo = decode(beagle, max_pixels=10**8)
    matrix = (photo.width / CROP, 0, 0, 0, photo.height / CROP, 0)
    affine, bilinear = Image.Transform.AFFINE, Image.Resampling.BILINEAR
    return photo.transform((CROP, CROP), affine, matrix, bilinear)


def test_a_beagle_is_as_probable_as_an_independent_reader_has_it(
    real: Engine, beagle: bytes
) -> None:
    """`shared/README.md`: resized straight to 224x224, class 162 at 0.811.

    It does not say how it was resized. Bilinear without antialiasing gives 0.811; Pillow's
    `resize`, which the service uses and which antialiases, gives 0.760.
    """
    payload = cuts(beagle_at_224(beagle), "single", STRAIGHT)
    (best, *_) = real.ensemble.rank([real.lanes[0].run(batch(whole(payload)))], [payload.plan], 5)
    assert (best.index, best.label, best.wnid) == (162, "beagle", "n02088364")
    assert best.probability == pytest.approx(0.811, abs=0.005)


def test_a_photo_is_answered_as_a_plain_reading_of_pixels_minus_mean_is(
    model: Model, real: Engine, photos: list[Image.Image]
) -> None:
    """BGR minus 104, 117, 123, planes first, with no part of the service but the network."""
    warped = photos[0].resize((256, 256), Image.Resampling.BILINEAR).crop((16, 16, 240, 240))
    bgr = np.asarray(warped, np.float32)[:, :, ::-1] - np.float32([104, 117, 123])
    with torch.inference_mode():
        logits = model.network()(torch.tensor(bgr.transpose(2, 0, 1).copy())[None])
    expected = logits.softmax(1)[0].numpy()
    assert rank(real, photos[0], "single") == pytest.approx(expected, abs=1e-5)


def test_a_job_gets_the_same_answer_alone_among_others_and_in_pieces(
    real: Engine, photos: list[Image.Image]
) -> None:
    run = real.lanes[0].run
    one, two, three = (cuts(photo, "ten") for photo in photos[:3])
    (alone,) = run(batch(Slice(one, 0, 2), size=4))
    _, among, _ = run(batch(Slice(two, 4, 5), Slice(one, 0, 2), Slice(three, 0, 1), size=4))
    pieces = [run(batch(Slice(one, at, at + 1), size=size))[0] for at, size in ((0, 1), (1, 2))]
    assert among / 2 == pytest.approx(alone / 2, abs=1e-5)
    assert np.sum(pieces, axis=0) / 2 == pytest.approx(alone / 2, abs=1e-5)


def test_real_members_are_averaged(model: Model, real: Engine, photos: list[Image.Image]) -> None:
    generator = torch.Generator().manual_seed(0)
    state = {
        name: value * (1 + 0.1 * torch.randn(value.shape, generator=generator))
        for name, value in model.state.items()
    }
    both = place(model, replace(model, name="perturbed", state=state), max_batch=1)
    payload = cuts(photos[0], "single")
    one, other = (both.lanes[0].run(batch(whole(payload), member=n))[0] for n in (0, 1))
    assert one == pytest.approx(rank(real, photos[0], "single"), abs=1e-5)
    assert np.abs(one - other).max() > 1e-3
    assert rank(both, photos[0], "single") == pytest.approx((one + other) / 2, abs=1e-5)


def test_bfloat16_agrees_with_float32_on_what_it_is(
    model: Model, real: Engine, photos: list[Image.Image]
) -> None:
    half = place(model, precision="bfloat16", max_batch=1)
    assert half.ensemble.precision == "bfloat16"
    for photo in photos[:3]:
        exact, rounded = rank(real, photo, "single"), rank(half, photo, "single")
        assert exact.argmax() == rounded.argmax()
        assert rounded == pytest.approx(exact, abs=0.05)


@needs_gpu
def test_a_gpu_gives_the_answers_of_the_cpu(
    model: Model, real: Engine, photos: list[Image.Image]
) -> None:
    on_gpu = place(model, device="cuda:0", max_batch=2)
    assert [lane.device for lane in on_gpu.lanes] == [0, 0]
    for photo in photos:
        for name in ("ten", "dense"):
            assert rank(on_gpu, photo, name) == pytest.approx(rank(real, photo, name), abs=1e-3)


@needs_gpu
@pytest.mark.parametrize("name", ["single", "dense"])
def test_a_gpu_makes_the_maps_of_the_cpu(
    name: str, model: Model, real: Engine, photos: list[Image.Image]
) -> None:
    on_gpu = place(model, device="cuda:0", max_batch=2)
    for photo in photos[:3]:
        made = []
        for placed in (real, on_gpu):
            payload = replace(cuts(photo, name), size=photo.size, target=162)
            one = Batch(Key(0, payload.plan.side, maps=True), 1, (Slice(payload, 0, 1),), "full")
            (found,) = placed.lanes[0].run(one)
            assert isinstance(found, Activation)
            made.append(found)
        assert made[1].grid == pytest.approx(made[0].grid, abs=1e-2)
        assert made[1].logit == pytest.approx(made[0].logit, abs=1e-3)
        assert made[1].box == made[0].box


@needs_gpu
def test_a_gpu_takes_tensors_beside_pictures(
    model: Model, real: Engine, photos: list[Image.Image]
) -> None:
    """One row of each kind, then each kind alone: graphs are recorded by type, too."""
    on_gpu = place(model, device="cuda:0", max_batch=2)
    pixels = cuts(photos[0], "single")
    exact = replace(pixels, canvases=tuple(np.float32(one) for one in pixels.canvases))
    (wanted,) = real.lanes[0].run(batch(whole(pixels)))
    for given in ([pixels, exact], [pixels], [exact], [pixels, pixels], [exact, exact]):
        for found in on_gpu.lanes[0].run(batch(*map(whole, given))):
            assert found == pytest.approx(wanted, abs=1e-3)

"""Features of images: the input of the last layer, from the batches that classify."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small
import torch
from batches import batch, cuts, whole
from PIL import Image
from small import softmax

from service.engine import openvino_engine, openvino_executor, quantization, torch_executor, weights
from service.engine.executor import DeviceExecutor
from service.engine.openvino_executor import Compiled
from service.engine.prepared_image import PreparedImage
from service.engine.torch_network import Probabilities
from service.engine.weights import Model
from service.models.store import Store
from service.scheduling.types import Slice

NAME = "bvlc_googlenet"
CPU = torch.device("cpu")


def on_torch(model: Model, dtype: torch.dtype = torch.float32) -> DeviceExecutor:
    return torch_executor.executors([model], [CPU], dtype)[0]


def on_openvino(model: openvino_executor.Model, precision: str = "float32") -> DeviceExecutor:
    return openvino_executor.executors([Compiled(model, precision, 1)])[0]


def wanted(image: Image.Image, views: str = "single") -> Slice[PreparedImage]:
    """A slice of all views of an image whose features are asked for."""
    return whole(replace(cuts(image, views), features=True))


def test_features_are_those_that_caffe_recorded(shared: Path, real_store: Store) -> None:
    network = Probabilities(weights.load(real_store, NAME), CPU, torch.float32).network
    with np.load(shared / "reference/caffe_activations.npz") as reference, torch.inference_mode():
        features = network(torch.from_numpy(reference["data"])[None])[0]
        expected = reference["pool5_7x7_s1"].ravel()
    assert features.numpy() == pytest.approx(expected, abs=1e-4 * float(expected.max()))


@pytest.mark.parametrize("views", ["single", "ten", "dense"])
def test_features_are_the_same_alone_and_in_a_batch_with_classifications(
    views: str, real_store: Store, photos: Sequence[Image.Image]
) -> None:
    run = on_openvino(openvino_engine.read(real_store, NAME, "float32")).run
    others = [whole(cuts(photo, views)) for photo in photos[1:3]]
    (alone,) = run(batch(wanted(photos[0], views)))
    before, together, after = run(batch(others[0], wanted(photos[0], views), others[1]))
    assert (len(before), len(together), len(after)) == (1000, 2024, 1000)
    assert together == pytest.approx(alone, rel=1e-4, abs=1e-4)
    model = weights.load(real_store, NAME)
    (reference,) = on_torch(model).run(batch(wanted(photos[0], views)))
    assert model.channels == 1024
    assert reference == pytest.approx(alone, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("xception", "swin_t")),
    ],
)
def test_the_last_layer_on_the_features_gives_the_probabilities(
    name: str, tmp_path: Path, photos: Sequence[Image.Image]
) -> None:
    model = weights.load(small.stored(tmp_path, name), "small")
    last = model.network().get_submodule(weights.architecture(model.manifest).last)
    weight, bias = (value.detach().double().numpy() for value in last.parameters())
    for executor in (on_torch(model), on_openvino(small.converted(model))):
        (found,) = executor.run(batch(wanted(photos[0])))
        probabilities, features = np.split(np.asarray(found), [len(bias)])
        assert probabilities == pytest.approx(softmax(weight @ features + bias), abs=1e-4)


def test_other_number_formats_give_nearly_the_same_direction(
    real_store: Store, photos: Sequence[Image.Image]
) -> None:
    model, part = openvino_engine.read(real_store, NAME, "float32"), wanted(photos[0])
    pixels = np.stack([np.asarray(photo.resize((224, 224))) for photo in photos])
    quantized = replace(model, served=quantization.quantize(model, pixels))
    exact, *others = (
        np.asarray(executor.run(batch(part))[0])[1000:]
        for executor in (
            on_openvino(model),
            on_openvino(quantized, "int8"),
            on_torch(weights.load(real_store, NAME), torch.bfloat16),
        )
    )
    for other in others:
        assert exact @ other > 0.99 * np.linalg.norm(exact) * np.linalg.norm(other)

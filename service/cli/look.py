"""The look command: draw the parts of an image that feature maps react to."""

from pathlib import Path
from typing import Any

import torch

from service.cli import console, progress
from service.engine import weights
from service.engine.torch_network import Normalise
from service.engine.weights import Model
from service.errors import BulkError
from service.imaging import crops, image_decoder
from service.imaging.crops import Pixels
from service.models import store
from service.offline.visualize import contact_sheet, deconvnet
from service.offline.visualize.deconvnet import Stage
from service.settings import Settings


def look(settings: Settings, given: dict[str, Any]) -> int:
    """Draw the strongest feature maps of a model beside the parts of an image they react to."""
    photo, out = Path(given["photo"]), Path(given["out"])
    if out.suffix.lower() != ".png":
        raise BulkError(f"{out}: name a file that ends with .png")
    try:
        data = photo.read_bytes()
    except OSError as error:
        raise BulkError(f"cannot read {photo}: {error.strerror}") from error
    model = weights.load(store.locate(settings.model_store), settings.model)
    preprocessing = model.manifest.preprocessing
    plan = crops.plan("single", preprocessing.resized)
    image = image_decoder.decode(data, max_pixels=settings.max_pixels, min_side=plan.min_side)
    (view,) = crops.canvases(image, plan)
    stages, best = _stages(model, view)
    drawn = contact_sheet.draw(
        view,
        stages,
        f"{photo.name}    {model.name}: {best}",
        is_bgr=preprocessing.channels == "BGR",
    )
    try:
        drawn.save(out)
    except OSError as error:
        raise BulkError(f"cannot write {out}: {error.strerror}") from error
    console.say(f"{out} shows {len(stages)} stages of {model.name}")
    return 0


def _stages(model: Model, view: Pixels) -> tuple[list[Stage], str]:
    """Return the stages of a view, and its most probable label with the probability."""
    network = model.network()
    x = Normalise(model.manifest.preprocessing, torch.float32)(torch.from_numpy(view)[None])
    with torch.inference_mode():
        likely, place = (network(x)[0] / model.temperature).softmax(0).max(0)
    with progress.counting() as bar:
        stages = list(
            bar.track(deconvnet.look(network, x, contact_sheet.MAPS), description="stages")
        )
    return stages, f"{model.labels[int(place)].name}, {100 * float(likely):.1f} %"

"""Class activation maps from the last feature map; see `service.imaging.activation_map`."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.engine.prepared_image import PreparedImage
from service.imaging.activation_map import Activation
from service.scheduling.types import Slice

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Classifier:
    """A network's last linear layer, and the pooling of the feature map before it."""

    weight: Float32  # (classes, channels)
    bias: Float32  # (classes,)
    window: int | None  # side of the pooling windows; None: global pooling

    def explain(self, features: Float32, logits: Float32, part: Slice[PreparedImage]) -> Activation:
        """Compute the map of a slice's only view for its target class.

        Takes the view's features, (channels, rows, columns), and logits, (classes,). The map's
        mean plus the bias is the logit.
        """
        image, view = part.payload, part.payload.plan.views[part.start]
        weighted = np.tensordot(self.weight[image.target], features, 1)  # (rows, columns)
        grid = (weighted * self._weights(*weighted.shape)).astype(np.float32)
        upright = np.fliplr(grid) if view.mirror else grid
        return Activation(
            upright.copy(),
            float(logits[image.target]),
            float(self.bias[image.target]),
            image.plan.part(view, image.size),
        )

    def _weights(self, rows: int, columns: int) -> npt.NDArray[np.float64]:
        """Compute each position's relative number of pooling windows: (rows, columns), mean 1.

        A view of 224 pixels has one window, so all are 1. In a larger view, positions in the
        middle are in more windows.
        """
        if self.window is None:
            return np.ones((rows, columns))
        counts = np.outer(_counts(rows, self.window), _counts(columns, self.window))
        weights: npt.NDArray[np.float64] = counts / counts.mean()
        return weights


def _counts(length: int, window: int) -> npt.NDArray[np.float64]:
    starts = np.arange(length - window + 1)[:, None]
    inside = (starts <= np.arange(length)) & (np.arange(length) < starts + window)
    counts: npt.NDArray[np.float64] = inside.sum(0).astype(np.float64)
    return counts

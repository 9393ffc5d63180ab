"""Class activation maps from a network's last feature map; see `service.imaging.activation_map`."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.engine.prepared_image import PreparedImage
from service.imaging.activation_map import Activation
from service.scheduling.types import Slice

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Classifier:
    """The linear layer that gives the logits, and how the feature map before it is averaged."""

    weight: Float32  # (classes, channels)
    bias: Float32  # (classes,)
    window: int | None  # places along the windows that are averaged one by one; None: all at once

    def explain(self, features: Float32, logits: Float32, part: Slice[PreparedImage]) -> Activation:
        """Give the map of the one view that a slice has, for the class that it asks about.

        Takes the view's features, (channels, rows, columns), and logits, (classes,). The map's
        mean and the bias are together the logit.
        """
        cuts, view = part.payload, part.payload.plan.views[part.start]
        weighted = np.tensordot(self.weight[cuts.target], features, 1)  # (rows, columns)
        grid = (weighted * self._shares(*weighted.shape)).astype(np.float32)
        upright = np.fliplr(grid) if view.mirror else grid
        return Activation(
            upright.copy(),
            float(logits[cuts.target]),
            float(self.bias[cuts.target]),
            cuts.plan.part(view, cuts.size),
        )

    def _shares(self, rows: int, columns: int) -> npt.NDArray[np.float64]:
        """Give how often each place is in a window of pooling, beside the mean: (rows, columns).

        Where there is one window, as for a view of 224 pixels, all are 1; the logits of a larger
        one are the mean over all windows, in more of which the places in the middle are.
        """
        if self.window is None:
            return np.ones((rows, columns))
        often = np.outer(_often(rows, self.window), _often(columns, self.window))
        shares: npt.NDArray[np.float64] = often / often.mean()
        return shares


def _often(places: int, window: int) -> npt.NDArray[np.float64]:
    starts = np.arange(places - window + 1)[:, None]
    inside = (starts <= np.arange(places)) & (np.arange(places) < starts + window)
    often: npt.NDArray[np.float64] = inside.sum(0).astype(np.float64)
    return often

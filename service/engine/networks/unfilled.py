"""Networks are built for weights that are there already, and draw none by chance."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

_CHANCE = (Tensor.normal_, Tensor.uniform_)


class Unfilled(TorchFunctionMode):
    """While entered, parameters are 0 or what was in memory: to be filled from a file.

    Drawing the 138 million of VGG16 takes seconds, each time that it is built.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return named["tensor"]
        if func in _CHANCE:  # by itself, or to draw again what is too far from 0, until it is not
            return args[0].zero_()
        return func(*args, **named)

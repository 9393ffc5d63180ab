"""Checkpoints of training: the weights in them, by the names that the network itself gives.

Training saves more than weights, and may have wrapped the network: for several GPUs, to compile
it, or to average its weights. Both are undone here.
"""

from collections.abc import Callable, Collection, Mapping
from typing import TypeGuard

from torch import Tensor

from service.errors import BadWeights

Say = Callable[[str], object]
"""Takes a sentence about what was done with a file."""

# Under which checkpoints keep weights, in the order in which they are looked for: those that were
# trained come before their averages, which not every training keeps up to date.
WRAPPERS = (
    *("state_dict", "model", "model_state_dict", "module", "net", "network", "params", "weights"),
    *("ema", "model_ema", "ema_state_dict", "state_dict_ema"),
)

# Of DataParallel and DistributedDataParallel, of torch.compile, and of Lightning.
_PREFIXES = ("module.", "_orig_mod.", "model.")
# Of wrappers around parts of a network: torch.compile, checkpointing and FSDP.
_PARTS = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")

_AVERAGED = "n_averaged"  # the counter of torch.optim.swa_utils.AveragedModel
_DEEPEST = 4  # wrappers in wrappers


def ignore(_: str) -> None:
    """Say nothing."""


def weights(content: object, file: str, say: Say = ignore) -> dict[str, Tensor]:
    """Find the state dict in what a file holds; raises `BadWeights` if there is none."""
    taken: list[str] = []
    others: list[str] = []
    for _ in range(_DEEPEST):
        if _is_state(content):
            if taken:
                left = f", not those under {', '.join(others)}" if others else ""
                say(f"took the weights under {' in '.join(reversed(taken))} of {file}{left}")
            return content
        found = _wrapped(content)
        if not found:
            break
        (first, content), *more = found.items()
        taken.append(repr(first))
        others += [repr(name) for name, _ in more]
    raise BadWeights(
        f"{file} holds something else than a state dict of tensors, by itself or under "
        + ", ".join(WRAPPERS)
    )


def unprefixed(tensors: Mapping[str, Tensor], file: str, say: Say = ignore) -> dict[str, Tensor]:
    """Remove from tensors' names what wrappers of the network have put there."""
    kept = {name: value for name, value in tensors.items() if name != _AVERAGED}
    renamed = {name: name for name in kept}
    removed: dict[str, None] = {}  # a set in order
    for part in _PARTS:
        if any(f".{part}" in f".{name}" for name in renamed.values()):
            renamed = {old: f".{new}".replace(f".{part}", ".")[1:] for old, new in renamed.items()}
            removed[part] = None
    while prefix := _prefix(renamed.values()):
        renamed = {old: new.removeprefix(prefix) for old, new in renamed.items()}
        removed[prefix] = None
    if len({*renamed.values()}) < len(renamed):
        raise BadWeights(f"{file} has two tensors of one name, without {', '.join(removed)}")
    if removed:
        say(f"removed {', '.join(map(repr, removed))} from the names in {file}")
    return {renamed[name]: value for name, value in kept.items()}


def _is_state(content: object) -> TypeGuard[dict[str, Tensor]]:
    return isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    )


def _wrapped(content: object) -> dict[str, object]:
    if not isinstance(content, dict):
        return {}
    return {name: content[name] for name in WRAPPERS if isinstance(content.get(name), dict)}


def _prefix(names: Collection[str]) -> str:
    """Return a prefix that all names have, or nothing."""
    for prefix in _PREFIXES:
        if names and all(name.startswith(prefix) for name in names):
            return prefix
    return ""

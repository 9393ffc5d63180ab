"""Training checkpoints: extraction of the weights under the network's own names.

Checkpoints contain more than weights, and wrappers of the network add prefixes to names: for
several GPUs, compilation or weight averaging.
"""

from collections.abc import Callable, Collection, Mapping
from typing import TypeGuard

from torch import Tensor

from service.errors import BadWeights

Say = Callable[[str], object]
"""Called with a sentence about a change made to a file's content."""

# Keys of weights in checkpoints, in order of preference: trained weights before their averages,
# which not every training keeps up to date.
WRAPPERS = (
    *("state_dict", "model", "model_state_dict", "module", "net", "network", "params", "weights"),
    *("ema", "model_ema", "ema_state_dict", "state_dict_ema"),
)

# Prefixes by DataParallel and DistributedDataParallel, torch.compile and Lightning.
_PREFIXES = ("module.", "_orig_mod.", "model.")
# Infixes by wrappers of submodules: torch.compile, checkpointing and FSDP.
_PARTS = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")

_AVERAGED = "n_averaged"  # the counter of torch.optim.swa_utils.AveragedModel
_MAX_DEPTH = 4  # of nested wrappers


def ignore(_: str) -> None:
    """Discard the message."""


def weights(content: object, file: str, say: Say = ignore) -> dict[str, Tensor]:
    """Find the state dict in a file's content; raises `BadWeights` if there is none."""
    taken: list[str] = []
    others: list[str] = []
    for _ in range(_MAX_DEPTH):
        if _is_state(content):
            if taken:
                left = f", not those under {', '.join(others)}" if others else ""
                say(f"took the weights under {' in '.join(reversed(taken))} of {file}{left}")
            return content
        wrapped = _wrapped(content)
        if not wrapped:
            break
        (first, content), *more = wrapped.items()
        taken.append(repr(first))
        others += [repr(name) for name, _ in more]
    raise BadWeights(
        f"{file} holds no state dict of tensors, at the top level or under " + ", ".join(WRAPPERS)
    )


def unprefixed(tensors: Mapping[str, Tensor], file: str, say: Say = ignore) -> dict[str, Tensor]:
    """Remove the prefixes and infixes of wrappers from tensor names."""
    kept = {name: value for name, value in tensors.items() if name != _AVERAGED}
    renamed = {name: name for name in kept}
    removed: dict[str, None] = {}  # an ordered set
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
    """Return a prefix of all names, or an empty string."""
    for prefix in _PREFIXES:
        if names and all(name.startswith(prefix) for name in names):
            return prefix
    return ""

"""Print what a package needs, itself included, each at the version that is installed here.

`make lock` splits it into what the image gets by hash and what it gets by version.
"""

import sys
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

OURS = "googlenet-service"
# PyPI's torch for Linux is the build for CUDA and requires NVIDIA's libraries, which are no
# business of an image for the CPU. The build for the CPU requires what the one for macOS does.
TORCH = {"platform_system": "Darwin"}


def required(one: Requirement) -> Iterator[Requirement]:
    """Give what a package itself requires here, with the extras that were asked for."""
    given = TORCH if one.name == "torch" else {}
    extras = one.extras or {""}
    for line in metadata.requires(one.name) or ():
        other = Requirement(line)
        if not other.marker or any(other.marker.evaluate({**given, "extra": x}) for x in extras):
            yield other


def graph(asked: str) -> dict[str, set[str]]:
    """Give every package that is installed with this one, and what each of them requires."""
    found: dict[str, set[str]] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [Requirement(asked)]
    while waiting:
        one = waiting.pop()
        name, extras = canonicalize_name(one.name), frozenset(one.extras)
        if (name, extras) not in seen:
            seen.add((name, extras))
            others = [*required(one)]
            found.setdefault(name, set()).update(canonicalize_name(x.name) for x in others)
            waiting.extend(others)
    return found


def pins(asked: str) -> list[str]:
    """Give a pin for each package that is installed with this one; our own has none."""
    names = graph(asked).keys() - {OURS}
    # A build of torch has a local version ("+cpu") that another index does not know.
    return [f"{name}=={Version(metadata.version(name)).public}" for name in sorted(names)]


if __name__ == "__main__":
    print(*pins(sys.argv[1]), sep="\n")

"""Print a package and its dependencies, each at the version that is installed here.

`make lock` splits them into packages locked by hash and by version.
"""

import sys
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

OURS = "googlenet-service"
# PyPI's torch for Linux is the CUDA build and requires NVIDIA's libraries, which the CPU image does
# not need. The CPU build has the requirements of the one for macOS.
TORCH = {"platform_system": "Darwin"}


def required(package: Requirement) -> Iterator[Requirement]:
    """Yield the direct requirements of a package on this platform, with its extras."""
    platform = TORCH if package.name == "torch" else {}
    extras = package.extras or {""}
    for line in metadata.requires(package.name) or ():
        other = Requirement(line)
        if not other.marker or any(other.marker.evaluate({**platform, "extra": x}) for x in extras):
            yield other


def graph(package: str) -> dict[str, set[str]]:
    """Return all packages installed with this one, and what each of them requires."""
    requirements: dict[str, set[str]] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [Requirement(package)]
    while waiting:
        current = waiting.pop()
        name, extras = canonicalize_name(current.name), frozenset(current.extras)
        if (name, extras) not in seen:
            seen.add((name, extras))
            others = [*required(current)]
            requirements.setdefault(name, set()).update(canonicalize_name(x.name) for x in others)
            waiting.extend(others)
    return requirements


def pins(package: str) -> list[str]:
    """Return a pin for each package installed with this one, but not for this project."""
    names = graph(package).keys() - {OURS}
    # A build of torch has a local version ("+cpu") that another index does not know.
    return [f"{name}=={Version(metadata.version(name)).public}" for name in sorted(names)]


if __name__ == "__main__":
    print(*pins(sys.argv[1]), sep="\n")

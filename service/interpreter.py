"""Our Python, to be started once more: with the same modules, wherever it is started."""

import os
import sys

# Of the GNU C library's malloc (its manual, "Memory Allocation Tunables"): memory of large
# tensors is kept, not given back after each layer to be cleared and mapped anew for the next;
# one arena for all threads, since only the main one may keep so much; and huge pages.
_MALLOC = {"mmap_max": 0, "trim_threshold": 2**31 - 1, "arena_max": 1, "hugetlb": 1}


def command(module: str, *arguments: str) -> list[str]:
    """Give the command that runs a module of ours as a program."""
    return [sys.executable, "-P", "-m", module, *arguments]  # nothing from the present folder


def environment() -> dict[str, str]:
    """Give the environment to run it in: where modules are found is the same as here."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}


def computing() -> dict[str, str]:
    """Give what to add to the environment of a program that computes, for its memory."""
    chosen = [f"glibc.malloc.{name}={value}" for name, value in _MALLOC.items()]
    given = os.environ.get("GLIBC_TUNABLES", "")  # comes last, and so decides
    return {"GLIBC_TUNABLES": ":".join([*chosen, given] if given else chosen)}

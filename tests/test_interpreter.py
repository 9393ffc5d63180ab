"""Our Python, started once more: it finds the same modules, and keeps its memory if it computes."""

import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from service import interpreter

# Prints the page faults of taking much memory for the first and for the second time.
FAULTS = """
import resource
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(2**26)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
needs_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="this system's C library is another"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that modules are looked for in, by this process."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return folder


def run(
    *arguments: str, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> str:
    """Run a module as ours are run, and give what it prints."""
    module, *rest = arguments
    return subprocess.run(  # noqa: S603 - a module of ours
        interpreter.command(module, *rest),
        env={**interpreter.environment(), **(environment or {})},
        cwd=cwd, capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip


def test_modules_are_found_from_another_folder_and_none_that_lies_there(tmp_path: Path) -> None:
    decoy = tmp_path / "service"
    decoy.mkdir()
    decoy.joinpath("__init__.py").write_text("")
    decoy.joinpath("__main__.py").write_text("print('usage: something else')")
    assert run("service", "--help", cwd=tmp_path).startswith("usage: googlenet-service")


def test_modules_are_looked_for_where_they_are_here(folder: Path, tmp_path: Path) -> None:
    folder.joinpath("echo.py").write_text("import sys\nprint(sys.argv[1:])\n")
    assert run("echo", "one", "and two", cwd=tmp_path) == "['one', 'and two']\n"


def test_the_rest_of_the_environment_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLENET_PORT", "1234")
    assert interpreter.environment()["GOOGLENET_PORT"] == "1234"


@pytest.mark.parametrize("given", [None, ""])
def test_what_computes_is_told_how_to_keep_its_memory(
    given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if given is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", given)
    assert interpreter.computing() == {
        "GLIBC_TUNABLES": "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=2147483647:"
        "glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1"
    }


def test_what_a_user_says_about_the_memory_comes_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    ours = interpreter.computing()["GLIBC_TUNABLES"]
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=8:glibc.malloc.hugetlb=0")
    assert interpreter.computing() == {
        "GLIBC_TUNABLES": f"{ours}:glibc.malloc.arena_max=8:glibc.malloc.hugetlb=0"
    }


@needs_glibc
@pytest.mark.parametrize(("given", "is_kept"), [("", True), ("glibc.malloc.mmap_max=9", False)])
def test_memory_that_was_given_back_is_there_at_once_unless_a_user_says_otherwise(
    given: str,
    is_kept: bool,  # noqa: FBT001 - a parameter
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder.joinpath("faults.py").write_text(FAULTS)
    monkeypatch.setenv("GLIBC_TUNABLES", given)
    first, second = map(int, run("faults", environment=interpreter.computing()).split())
    assert first >= 32  # 64 MiB in pages of at most 2 MiB
    assert (second < 32) == is_kept

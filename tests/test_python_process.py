"""Our Python, started once more: it finds the same modules."""

import subprocess
from pathlib import Path

import pytest

from service import python_process


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that modules are looked for in, by this process."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return folder


def run(*arguments: str, cwd: Path | None = None) -> str:
    """Run a module as ours are run, and give what it prints."""
    module, *rest = arguments
    return subprocess.run(  # noqa: S603 - a module of ours
        python_process.command(module, *rest),
        env=python_process.environment(),
        cwd=cwd, capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip


def test_modules_are_found_from_another_folder_but_none_in_it(tmp_path: Path) -> None:
    decoy = tmp_path / "service"
    decoy.mkdir()
    decoy.joinpath("__init__.py").write_text("")
    decoy.joinpath("__main__.py").write_text("print('usage: something else')")
    assert run("service", "--help", cwd=tmp_path).startswith("usage: googlenet-service")


def test_the_import_path_is_that_of_this_process(folder: Path, tmp_path: Path) -> None:
    folder.joinpath("echo.py").write_text("import sys\nprint(sys.argv[1:])\n")
    assert run("echo", "one", "and two", cwd=tmp_path) == "['one', 'and two']\n"


def test_the_rest_of_the_environment_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLENET_PORT", "1234")
    assert python_process.environment()["GOOGLENET_PORT"] == "1234"

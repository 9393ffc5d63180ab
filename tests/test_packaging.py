"""The wheel works where there is no checkout."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the service as its wheel installs it, its dependencies aside."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(  # noqa: S603 - our own package
        [*pip, "install", "--no-deps", "--no-build-isolation", "--target", folder, ROOT],
        check=True, timeout=120,
    )  # fmt: skip
    return folder


def run(site: Path, cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own package
        [sys.executable, "-P", "-m", "service", *arguments],
        env={**os.environ, "PYTHONPATH": str(site), "XDG_CACHE_HOME": str(cache)},
        cwd=cache, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_an_installed_wheel_knows_the_built_in_models(site: Path, tmp_path: Path) -> None:
    listed = run(site, tmp_path, "models", "list")
    assert listed.returncode == 0, listed.stderr
    assert "bvlc_googlenet" in listed.stdout
    assert str(tmp_path / "googlenet-service/model_store") in listed.stdout.replace("\n", "")


@pytest.mark.slow
def test_an_installed_wheel_keeps_weights_in_the_users_cache(
    site: Path, tmp_path: Path, shared: Path
) -> None:
    weights = str(shared / "weights/bvlc_googlenet.caffemodel")
    imported = run(site, tmp_path, "models", "import", "bvlc_googlenet", weights)
    assert imported.returncode == 0, imported.stderr
    assert (tmp_path / "googlenet-service/model_store/bvlc_googlenet/weights.safetensors").is_file()
    assert run(site, tmp_path, "models", "verify").stdout.startswith("bvlc_googlenet: ")


def test_only_the_bundled_models_weights_are_in_the_wheel(site: Path) -> None:
    store = site / "service/model_store"
    files = {str(path.relative_to(store)) for path in store.rglob("*") if path.is_file()}
    assert {file for file in files if Path(file).suffix not in {".toml", ".tsv"}} == {
        "digits/weights.safetensors",
        "digits/weights.safetensors.sha256",
    }


@pytest.mark.parametrize("folder", ["page", "docs_page"])
def test_the_pages_and_their_licences_are_in_the_wheel(folder: str, site: Path) -> None:
    page = ROOT / "service" / folder
    files = {file.name: file.read_bytes() for file in (site / "service" / folder).iterdir()}
    assert files == {file.name: file.read_bytes() for file in page.iterdir()}


@pytest.mark.slow
def test_an_installed_wheel_classifies_with_the_bundled_model(site: Path, tmp_path: Path) -> None:
    five = str(ROOT / "model_store/digits/held_out/5.png")
    done = run(site, tmp_path, "classify", "--model", "digits", "--json", five)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["predictions"][0]["label"] == "5"

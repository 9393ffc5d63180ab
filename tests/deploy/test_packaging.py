"""The wheel works without a checkout, and on a CPU without PyTorch."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import venv
from importlib import metadata
from pathlib import Path

import httpx2
import pytest
from conftest import ROOT, wait_ready

from service.models.store import Store


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed wheel, without dependencies."""
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


def test_an_installed_wheel_has_the_bundled_manifests(site: Path, tmp_path: Path) -> None:
    listed = run(site, tmp_path, "models", "list")
    assert listed.returncode == 0, listed.stderr
    assert "bvlc_googlenet" in listed.stdout
    assert str(tmp_path / "googlenet-service/model_store") in "".join(listed.stdout.split())


@pytest.mark.slow
def test_an_installed_wheel_keeps_weights_in_the_users_cache(
    site: Path, tmp_path: Path, shared: Path
) -> None:
    weights = str(shared / "weights/bvlc_googlenet.caffemodel")
    imported = run(site, tmp_path, "models", "import", "bvlc_googlenet", weights)
    assert imported.returncode == 0, imported.stderr
    assert (tmp_path / "googlenet-service/model_store/bvlc_googlenet/weights.safetensors").is_file()
    assert run(site, tmp_path, "models", "verify").stdout.startswith("bvlc_googlenet: ")


def test_only_the_bundled_models_weights_and_two_examples_are_in_the_wheel(site: Path) -> None:
    store = site / "service/model_store"
    files = {str(path.relative_to(store)) for path in store.rglob("*") if path.is_file()}
    assert {file for file in files if Path(file).suffix not in {".toml", ".tsv"}} == {
        "digits/weights.safetensors",
        "digits/weights.safetensors.sha256",
        "digits/openvino.zip",
        "digits/openvino.zip.sha256",
        "wordnet/LICENSE",
        "digits/held_out/7.png",  # examples, for a first request
        "clock.png",
    }
    for file in ("hypernyms.tsv", "LICENSE"):
        packed, ours = (folder / "wordnet" / file for folder in (store, ROOT / "model_store"))
        assert packed.read_bytes() == ours.read_bytes()


@pytest.mark.parametrize("folder", ["api/static/playground", "api/static/docs"])
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


# As in the CPU image: the packages of deploy/requirements.txt, the wheel, and nothing else.

FIVE = ROOT / "model_store/digits/held_out/5.png"


@pytest.fixture(scope="module")
def locked(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the locked packages only, linked to those here."""
    folder = tmp_path_factory.mktemp("locked")
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    lock = (ROOT / "deploy/requirements.txt").read_text("utf-8")
    for name in re.findall(r"^([a-z0-9-]+)==", lock, re.MULTILINE):
        for file in metadata.files(name) or ():
            if ".." not in file.parts:  # not its commands
                link = packages / file
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(Path(file.locate()).resolve())
    (packages / "wheel.pth").write_text(f"{site}\n", "utf-8")
    return folder / "bin/python"


def environment(cache: Path) -> dict[str, str]:
    given = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**given, "XDG_CACHE_HOME": str(cache)}


def run_locked(python: Path, cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own package
        [python, "-P", "-m", "service", *arguments],
        env=environment(cache), cwd=cache, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_the_locked_packages_have_no_pytorch(locked: Path) -> None:
    code = "from importlib.util import find_spec as f; print(f('openvino').name, f('torch'))"
    done = subprocess.run(  # noqa: S603 - ours
        [locked, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "openvino None\n"


@pytest.mark.slow
def test_the_locked_packages_serve_on_a_cpu(locked: Path, tmp_path: Path) -> None:
    command = [locked, "-P", "-m", "service", "serve", "--model", "digits", "--port", "0"]
    log = tmp_path / "log"
    with (
        log.open("w") as file,
        subprocess.Popen(  # noqa: S603 - our own package
            [*command, "--require-model", "yes", "--download-weights", "no"],
            env=environment(tmp_path), cwd=tmp_path, stderr=file,
        ) as service,
    ):  # fmt: skip
        try:
            with httpx2.Client(base_url=f"http://127.0.0.1:{port(service, log)}") as client:
                wait_ready(client)
                answer = client.post("/classify", files={"file": FIVE.read_bytes()})
                (model,) = client.get("/models").json()["models"]
        finally:
            service.terminate()
    assert answer.json()["predictions"][0]["label"] == "5"
    assert model["device"] == "cpu"


def port(service: subprocess.Popen[bytes], log: Path) -> int:
    """Wait until a service listens, and return its port."""
    for _ in range(600):
        if found := re.search(r"running on http://[\d.]+:(\d+)", log.read_text("utf-8")):
            return int(found[1])
        assert service.poll() is None, log.read_text("utf-8")
        time.sleep(0.1)
    pytest.fail("the service did not listen within a minute")


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ("classify", "--model", "digits", str(FIVE)),
        ("models", "list"),
        ("models", "verify"),
    ],
    ids=" ".join,
)
def test_a_command_without_pytorch_does_not_import_it(
    locked: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    done = run_locked(locked, tmp_path, *command)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_model_that_is_not_converted_needs_pytorch(
    locked: Path, tmp_path: Path, real_store: Store
) -> None:
    for path in real_store.root.glob("bvlc_googlenet/weights.safetensors*"):
        (tmp_path / "store/bvlc_googlenet").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "store/bvlc_googlenet")
    model = ("--model", "bvlc_googlenet", "--model-store", str(tmp_path / "store"))
    done = run_locked(locked, tmp_path, "classify", *model, str(FIVE))
    assert done.returncode == 1
    assert "googlenet-service[torch]" in done.stderr
    assert "Traceback" not in done.stderr

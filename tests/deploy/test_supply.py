"""The image's packages are locked, listed and audited; SECURITY.md matches the code."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, missing, website
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from service.models import store as stores
from service.settings import Settings

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
OURS = "googlenet-service"
DEPENDENCIES = [Requirement(line) for line in PROJECT["project"]["dependencies"]]
EXTRAS = PROJECT["project"]["optional-dependencies"]
INSTALLED = [*DEPENDENCIES, *map(Requirement, EXTRAS["trace"] + EXTRAS["grpc"])]
TORCH = [Requirement(line) for line in EXTRAS["torch"]]  # for conversion and GPUs
PIN = re.compile(r"([a-z0-9-]+)==(\S+)((?: --hash=sha256:[0-9a-f]{64})*)")

Pins = Mapping[str, str]


def pins(name: str, *, hashed: bool = True) -> Pins:
    """Return versions by name; fail for a line that is not a pin, with hashes or without."""
    text = (ROOT / "deploy" / name).read_text("utf-8").replace(" \\\n   ", "")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    found = [PIN.fullmatch(line) for line in lines]
    assert all(found), "only names, versions and hashes: no index, no path, no host"
    assert all(bool(one[3]) is hashed for one in found if one)
    return {one[1]: one[2] for one in found if one}


def applies(one: Requirement, extras: set[str]) -> bool:
    return not one.marker or any(one.marker.evaluate({"extra": x}) for x in extras or {""})


def is_for_cuda(one: Requirement) -> bool:
    """Tell whether only torch's CUDA build requires it: those for Linux alone."""
    return 'platform_system == "Linux"' in str(one.marker)


def needed(roots: list[Requirement]) -> set[str]:
    """Return the names of all requirements, by the installed packages' metadata."""
    extras: dict[str, set[str]] = {}
    for one in roots:
        extras.setdefault(canonicalize_name(one.name), set()).update(one.extras)
    while True:
        more = {name: set(given) for name, given in extras.items()}
        for name, given in extras.items():
            for line in metadata.requires(name) or ():
                other = Requirement(line)
                if applies(other, given) and not (name == "torch" and is_for_cuda(other)):
                    more.setdefault(canonicalize_name(other.name), set()).update(other.extras)
        if more == extras:
            return set(extras)
        extras = more


def unmet(wanted: list[Requirement], locked: Pins) -> list[str]:
    return [
        str(one)
        for one in wanted
        if not one.specifier.contains(locked[canonicalize_name(one.name)], prereleases=True)
    ]


# The lock


def test_the_lock_of_the_cpu_image_is_complete_and_minimal() -> None:
    locked = pins("requirements.txt")
    assert locked.keys() == needed(INSTALLED), "run: make lock"
    assert unmet(INSTALLED, locked) == [], "run: make lock"
    assert not {name for name in locked if "torch" in name or name.startswith("nvidia-c")}


def test_the_lock_of_torchs_dependencies_is_complete_and_minimal() -> None:
    torch = pins("torch.txt", hashed=False)
    locked = {**pins("torch-requirements.txt"), **torch}
    assert locked.keys() == needed(INSTALLED + TORCH) - needed(INSTALLED), "run: make lock"
    assert unmet(TORCH, locked) == [], "run: make lock"


def test_only_torch_is_without_a_hash() -> None:
    assert pins("torch.txt", hashed=False).keys() == {"torch", "torchvision"}


def test_the_lock_of_the_build_tools_is_complete_and_minimal() -> None:
    wanted = [Requirement(line) for line in PROJECT["build-system"]["requires"]]
    locked = pins("build.txt")
    assert locked.keys() == needed(wanted), "run: make lock"
    assert unmet(wanted, locked) == [], "run: make lock"


def test_locks_agree() -> None:
    runs, builds = pins("requirements.txt"), pins("build.txt")
    assert {name: runs[name] for name in runs.keys() & builds.keys()} == {
        name: builds[name] for name in runs.keys() & builds.keys()
    }


# Audit and SBOM


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a target with the tools beside our Python, without installing anything."""
    tool = shutil.which("make") or missing("make")
    ours = f"BIN={Path(sys.executable).parent}"
    stamps = ("--old-file=.venv/.run", "--old-file=.venv/.dev")
    return subprocess.run(  # noqa: S603 - our own Makefile
        [tool, "--no-print-directory", "--silent", *stamps, ours, *arguments],
        cwd=ROOT, env={**os.environ, "NO_PROXY": "127.0.0.1"}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip


@contextmanager
def osv(vulnerable: str | None = None) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """A fake OSV server: its address, and the versions in its requests."""
    asked: list[tuple[str, str]] = []

    def answer(request: BaseHTTPRequestHandler) -> None:
        query = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        name = query["package"]["name"]
        asked.append((name, query["version"]))
        affected = {"package": {"name": name, "ecosystem": "PyPI"}}
        known = {"id": "OSV-0000-1", "summary": "it obeys", "affected": [affected]}
        content = json.dumps({"vulns": [known]} if name == vulnerable else {}).encode()
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    with website(answer) as address:
        yield f"{address}/v1/query", asked


@pytest.mark.parametrize("vulnerable", [None, "pillow", "torch"])
def test_an_audit_checks_every_locked_package_and_fails_for_a_vulnerable_one(
    vulnerable: str | None,
) -> None:
    with osv(vulnerable) as (url, asked):
        done = make("audit", f"OSV={url}")
    files = ("requirements.txt", "torch-requirements.txt", "build.txt")
    locked = [pin for file in files for pin in pins(file).items()]
    assert {*asked} == {*locked, *pins("torch.txt", hashed=False).items()}
    assert (done.returncode != 0) is bool(vulnerable), done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines() if "OSV-0000-1" in line] == (
        [vulnerable] if vulnerable else []
    )


def test_an_audit_without_an_answer_fails() -> None:
    with osv() as (url, _):
        pass
    assert make("audit", f"OSV={url}").returncode != 0


@pytest.fixture(scope="module")
def sbom(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The SBOM of an image with two models."""
    target = tmp_path_factory.mktemp("sbom") / "new/sbom.json"
    done = make("sbom", f"SBOM={target}", "MODEL=googlenet,bvlc_googlenet")
    assert (done.returncode, done.stderr) == (0, "")
    return target.read_text("utf-8")


@pytest.mark.slow
def test_the_sbom_is_valid_cyclonedx(sbom: str) -> None:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(sbom) is None


def components(sbom: str, kind: str) -> dict[str, dict[str, Any]]:
    parts = json.loads(sbom)["components"]
    return {part["name"]: part for part in parts if part["type"] == kind}


def digests(part: dict[str, Any]) -> Iterator[str]:
    for place in [part, *part.get("externalReferences", [])]:
        yield from (one["content"] for one in place.get("hashes", []))


def test_the_sbom_has_every_locked_package_with_its_digests(sbom: str) -> None:
    parts = components(sbom, "library")
    locked = pins("requirements.txt")
    assert {name: part["version"] for name, part in parts.items()} == locked
    lock = (ROOT / "deploy/requirements.txt").read_text("utf-8")
    listed = [digest for part in parts.values() for digest in digests(part)]
    assert sorted(listed) == sorted(re.findall(r"sha256:(\w+)", lock))


def test_the_sbom_has_the_dependencies(sbom: str) -> None:
    document = json.loads(sbom)
    names = {part["bom-ref"]: part["name"] for part in document["components"]}
    edges = {one["ref"]: one.get("dependsOn", []) for one in document["dependencies"]}
    root = document["metadata"]["component"]
    assert (root["name"], root["version"]) == (OURS, PROJECT["project"]["version"])
    direct = {names[ref] for ref in edges[root["bom-ref"]]}
    assert direct == {canonicalize_name(one.name) for one in INSTALLED}
    reached, waiting = set(), [root["bom-ref"]]
    while waiting:
        if (one := waiting.pop()) not in reached:
            reached.add(one)
            waiting.extend(edges[one])
    assert {names[one] for one in reached - {root["bom-ref"]}} == {*components(sbom, "library")}


def test_the_sbom_has_the_weights_with_their_digests(sbom: str) -> None:
    models = components(sbom, "machine-learning-model")
    store = stores.locate(None)
    assert models.keys() == {"digits", "googlenet", "bvlc_googlenet"}
    assert [*digests(models["digits"])] == [store.verify("digits")]
    for name in ("googlenet", "bvlc_googlenet"):
        (reference,) = models[name]["externalReferences"]
        source = store.manifest(name).source
        assert source is not None
        assert reference["url"] == str(source.url)
        begins = source.digest.partition(":")[2]
        assert begins in {*digests(models[name]), reference.get("comment", "").split(" ")[-1]}


# SECURITY.md


SECURITY = (ROOT / "SECURITY.md").read_text("utf-8")


def test_every_setting_in_the_page_exists() -> None:
    options = re.findall(r"`--([a-z][a-z-]*)`", SECURITY)
    assert options
    assert {name.replace("-", "_") for name in options} <= Settings.model_fields.keys()
    variables = re.findall(r"GOOGLENET_([A-Z_]+)", SECURITY)
    assert {name.lower() for name in variables} <= Settings.model_fields.keys()


def test_every_file_in_the_page_exists() -> None:
    named = {*re.findall(r"`([\w./-]+/[\w.-]+|\w+\.(?:py|md|txt))`", SECURITY)}
    assert named
    places = (ROOT, ROOT / "tests")
    assert [name for name in named if not any((one / name).exists() for one in places)] == []


def test_every_threat_has_a_test() -> None:
    rows = re.findall(r"^\| (?!threat|---)(.+) \|$", SECURITY, re.MULTILINE)
    assert rows
    cells = [row.split("|") for row in rows]
    assert {len(row) for row in cells} == {4}
    assert all(re.search(r"test_\w+\.py`", row[3]) for row in cells)


def test_every_make_target_in_the_page_exists() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    named = re.findall(r"`make ([a-z]+)", SECURITY)
    assert named
    assert {*named} <= {*targets}

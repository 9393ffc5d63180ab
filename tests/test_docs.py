"""The documentation is true: its commands run, its tables are those of the code."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, Served, fake_backend, missing
from prometheus_client.parser import text_string_to_metric_families
from test_classify import parts, plain, service

from service.api.problems import CLIENT_CLOSED_REQUEST, STATUS
from service.settings import Settings
from service.store import Store

README = (ROOT / "README.md").read_text("utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]


def settings_table() -> str:
    rows = ["| setting | default | what it changes |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f"`{field.default}`"
        rows.append(f"| `--{name.replace('_', '-')}` | {default} | {field.description} |")
    return "\n".join(rows)


def metrics_table() -> str:
    """Give the table of what a service tells of itself after a request."""
    keyed = Settings(model="fake", key_digests=f"web:{hashlib.sha256(b'key').hexdigest()}")
    with service(lambda _: fake_backend(), keyed) as client:
        client.post("/classify", files=parts(plain("red")), headers={"X-API-Key": "key"})
        families = text_string_to_metric_families(client.get("/metrics").text)
        ours = [one for one in families if one.name.startswith("googlenet_")]
    rows = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for family in sorted(ours, key=lambda one: one.name):
        if family.name.endswith("_created") or "worker_process" in family.name:
            continue
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        if family.name.startswith("googlenet_gpu_"):
            labels = {"gpu"}  # where there is none there is no sample to ask
        words = ", ".join(f"`{label}`" for label in sorted(labels))
        rows.append(f"| `{name}` | {family.type} | {words} | {family.documentation} |")
    return "\n".join(rows)


@pytest.mark.parametrize(
    ("name", "made"), [("settings", settings_table), ("metrics", metrics_table)]
)
def test_a_table_is_that_of_the_code(name: str, made: Callable[[], str]) -> None:
    written = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", README, re.DOTALL)
    assert written is not None
    assert written[1] == (table := made()), f"put this into README.md:\n{table}"


def test_the_table_of_alerts_is_that_of_the_rules() -> None:
    groups = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text("utf-8"))["groups"]
    rules = {
        rule["alert"]: rule["labels"]["severity"] for group in groups for rule in group["rules"]
    }
    assert dict(re.findall(r"^\| `(Googlenet\w+)` \| (\w+) \|", README, re.MULTILINE)) == rules


def test_every_picture_of_the_readme_is_there() -> None:
    pictures = re.findall(r"!\[.+\]\((.+)\)", README)
    assert pictures
    assert all((ROOT / picture).is_file() for picture in pictures)


def test_the_table_of_errors_has_every_status() -> None:
    written = {int(status) for status in re.findall(r"^\| (\d{3}) \|", README, re.MULTILINE)}
    assert written == {*STATUS.values()} - {CLIENT_CLOSED_REQUEST}


@pytest.fixture(scope="module")
def desk(shared: Path, real_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the documentation names."""
    folder = tmp_path_factory.mktemp("desk")
    for name in ("beagle.jpg", "tractor.jpg"):
        shutil.copy(shared / "photos/flickr" / name, folder)
    (folder / "photos").mkdir()
    for photo in sorted((shared / "photos").glob("*.JPEG"))[:4]:
        shutil.copy(photo, folder / "photos")
    for number, photo in enumerate(sorted((shared / "photos").glob("*.JPEG"))[:12]):
        there = folder / ("others" if number < 4 else "pictures") / ("even", "odd")[number % 2]
        there.mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, there)
    own = folder / "store/parts"
    own.mkdir(parents=True)
    example = re.search(r"```toml\n(.*?)```", README, re.DOTALL)
    assert example is not None
    thousand = example[1].replace("classes = 12", "classes = 1000")
    (own / "model.toml").write_text(thousand, "utf-8")
    (own / "labels.tsv").write_text("".join(f"\tpart {n}\n" for n in range(1000)), "utf-8")
    weights = real_store.root / "bvlc_googlenet/weights.safetensors"
    shutil.copy(weights, folder / "parts.safetensors")
    return folder


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("curl")])
def test_requests_are_answered(command: str, desk: Path, served: Served) -> None:
    if not shutil.which("curl"):
        missing("curl")
    there = command.replace("localhost:8000", f"127.0.0.1:{served.port}")
    answer = subprocess.run(  # noqa: S602 - our own README
        there.replace("curl", "curl --silent --show-error --fail", 1),
        shell=True, cwd=desk, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    written = re.search(r" -o (\S+)", command)
    assert (desk / written[1]).stat().st_size if written else answer.stdout


def run(example: str, python: Path, desk: Path, served: Served) -> str:
    there = example.replace("localhost:8000", f"127.0.0.1:{served.port}")
    done = subprocess.run(  # noqa: S603 - our own README
        [python, "-c", there],
        cwd=desk, capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_examples_in_python_run(desk: Path, served: Served) -> None:
    ours, others = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    said = run(ours, Path(sys.executable), desk, served)
    assert said.startswith("beagle\n")
    assert said.count("Prediction(") == 2
    python = ROOT / ".venv-clients/bin/python"
    if not python.exists():
        missing("the environment of other people's clients (make clients)")
    assert b":162:beagle" in run(others, python, desk, served).encode()


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("googlenet-service")])
def test_commands_succeed(command: str, desk: Path, real_store: Store) -> None:
    program = f"{sys.executable} -m service"
    quick = {"GOOGLENET_MAX_BATCH": "4", "GOOGLENET_CORES": "1"}  # to load
    done = subprocess.run(  # noqa: S602 - our own README
        command.replace("googlenet-service", program, 1),
        shell=True, cwd=desk, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, **quick, "GOOGLENET_STORE": str(real_store.root)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make")])
def test_make_knows_its_targets(command: str) -> None:
    if not shutil.which("make"):
        missing("make")
    plan = subprocess.run(  # noqa: S603 - our own README
        [*command.split(), "--dry-run"],
        cwd=ROOT, capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert plan.returncode == 0, plan.stderr
    assert "googlenet-service serve" in plan.stdout


def test_every_command_of_the_readme_is_run() -> None:
    others = [c for c in COMMANDS if not c.startswith(("curl", "googlenet-service", "make"))]
    assert others == []

"""The Dockerfile and docker-compose.yml: checked by linters, and against the service."""

import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, missing, website
from packaging.specifiers import SpecifierSet
from test_connections import hosting
from test_tls import papers_in

from service.server.app import create_app
from service.settings import Settings
from service.worker import child_process

DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = {name: one for name, one in SERVICES.items() if "build" in one}
SERVING = {name: one for name, one in OURS.items() if one.get("ports")}
CLOSING = child_process.CLOSE_SECONDS  # of the worker, after drain and grace


def instruction(name: str) -> str:
    """Return the arguments of the last such instruction of the Dockerfile."""
    return str(re.findall(rf"^{name} +(.*)$", DOCKERFILE, re.MULTILINE)[-1])


def image_settings() -> dict[str, str]:
    """Return the settings in the image's environment, by name, when built without a model."""
    found = re.findall(r"\bGOOGLENET_(\w+)=(\S+)", DOCKERFILE)
    return {name.lower(): re.sub(r"^\$\{\w+:-(.*)}$", r"\1", value) for name, value in found}


def settings(environment: dict[str, str]) -> Settings:
    """Parse variables as the service does; fail for an unknown one."""
    given = {name.removeprefix("GOOGLENET_").lower(): value for name, value in environment.items()}
    return Settings.model_validate({**image_settings(), **given})


def tool(name: str) -> str:
    """Find a program, beside our Python first."""
    beside = Path(sys.executable).parent
    return shutil.which(name, path=f"{beside}{os.pathsep}{os.environ['PATH']}") or missing(name)


def run(*command: str | Path, **given: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - tools on our own files
        command,
        cwd=ROOT, env={**os.environ, **given}, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip


def test_hadolint_accepts_the_dockerfile() -> None:
    said = run(tool("hadolint"), "--disable-ignore-pragma", "--no-color", "Dockerfile")
    assert (said.returncode, said.stdout) == (0, "")


def test_the_image_requires_its_model() -> None:
    chosen = settings({})
    assert chosen.require_model
    assert not chosen.download_weights


def test_the_image_exposes_its_ports() -> None:
    chosen = settings({})
    assert chosen.host == "0.0.0.0"  # noqa: S104 - a container's network is its own
    assert instruction("EXPOSE") == f"{chosen.port} {chosen.grpc_port}"


def test_the_images_user_is_a_number_and_not_root() -> None:
    user, group = map(int, instruction("USER").split(":"))
    assert user == group > 0
    assert f"--uid {user} " in DOCKERFILE


def test_the_image_starts_the_command_of_the_wheel() -> None:
    entry, command = json.loads(instruction("ENTRYPOINT")), json.loads(instruction("CMD"))
    assert entry == [*PROJECT["project"]["scripts"]]
    assert run(sys.executable, "-m", "service", *command, "--help").returncode == 0


def test_the_image_has_a_supported_python() -> None:
    (version,) = re.findall(r"^ARG PYTHON=([\d.]+)-", DOCKERFILE, re.MULTILINE)
    assert version in SpecifierSet(PROJECT["project"]["requires-python"])


def test_the_image_installs_locked_packages_only() -> None:
    """By hash, except torch (by version) and our own wheel (built there)."""
    commands = re.findall(r"pip (?:install|wheel|download) [^&\n]*", DOCKERFILE)
    by_hash = {"--require-hashes", "--no-deps", "--only-binary :all:"}
    wanted: dict[str, set[str]] = {
        "--requirement requirements.txt": by_hash,
        "--requirement build.txt": by_hash,
        "--requirement torch-requirements.txt": by_hash,
        "--requirement torch.txt": {"--only-binary :all:", "--index-url"},
        "--wheel-dir /wheels .": {"--no-deps", "--no-build-isolation"},
        "/wheels/*.whl": {"--no-deps", "--no-index"},
    }
    done = [(what, command) for command in commands for what in wanted if what in command]
    assert {what for what, _ in done} == wanted.keys()
    assert [command for _, command in done] == commands
    for what, command in done:
        assert {flag for flag in wanted[what] if flag in command} == wanted[what]


def stages() -> dict[str, tuple[str, str]]:
    """Return the base and the instructions of each stage, by name; the last has no name."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE)
    stage = r"^FROM (\S+)(?: AS (\S+))?\n(.*?)(?=^FROM |\Z)"
    found = re.findall(stage, text, re.MULTILINE | re.DOTALL)
    return {name: (base, text) for base, name, text in found}


def lineage(name: str) -> str:
    """Return the instructions of a stage and of all its bases."""
    base, text = stages()[name]
    return (lineage(base) if base in stages() else "") + text


def test_the_cpu_image_has_no_torch() -> None:
    assert "torch" not in lineage("cpu")
    for device in ("cuda", "torch"):
        assert "--requirement torch.txt" in lineage(device)


def test_the_image_has_the_engine_of_its_device() -> None:
    assert stages()["venv"][0] == "${DEVICE}"
    assert "COPY --from=venv /opt/venv /opt/venv" in stages()[""][1]
    (default,) = re.findall(r"^ARG DEVICE=(\w+)$", DOCKERFILE.partition("FROM ")[0], re.MULTILINE)
    assert default == "cpu"


def test_weights_are_converted_where_there_is_torch() -> None:
    assert "googlenet-service models fetch" in lineage("models")
    assert "--requirement torch.txt" in lineage("models")


@pytest.mark.parametrize("device", ["cpu", "torch"])
def test_packages_with_hashes_are_installed_first(device: str) -> None:
    found = re.findall(r"--requirement (\S+)|(pip check)", lineage(device))
    torch = ["torch-requirements.txt", "torch.txt"] if device == "torch" else []
    installed = ["requirements.txt", *torch, "pip check"]
    assert [file or check for file, check in found] == installed


def test_the_build_context_has_the_files_of_the_wheel() -> None:
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    seen = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    packed = set(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"])
    assert {path for path in seen if path.startswith("model_store/")} == packed
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)
    sources = {source for line in copied for source in line.split()}
    assert sources == {path if "model_store" not in path else "model_store" for path in seen}


@contextmanager
def answering(status: int) -> Iterator[int]:
    """A server on a free port that answers /readyz with a status."""

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(status if request.path == "/readyz" else 404)
        request.end_headers()

    with website(answer) as address:
        yield int(address.rpartition(":")[2])


def check_health(port: int, **settings: object) -> int:
    _, command = instruction("HEALTHCHECK").split("CMD", 1)
    python, *arguments = json.loads(command)
    assert python == "python"
    nowhere = "http://127.0.0.1:9"  # a proxy is not used
    given = {f"GOOGLENET_{name.upper()}": str(value) for name, value in settings.items()}
    done = run(sys.executable, *arguments, GOOGLENET_PORT=str(port), http_proxy=nowhere, **given)
    return done.returncode


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_health_check_reports_readiness(status: int, code: int) -> None:
    with answering(status) as port:
        assert check_health(port) == code


def test_the_health_check_speaks_tls_where_the_service_does(tmp_path: Path) -> None:
    papers = papers_in(tmp_path)
    with hosting(trust=papers.trust(), **papers.settings) as ours:
        assert check_health(ours.port, **papers.settings) == 0
        assert check_health(ours.port) == 1


def test_the_health_check_asks_the_probe_port_without_tls() -> None:
    with answering(200) as port:
        assert check_health(9, probe_port=port, tls_cert_file="cert.pem") == 0


def test_the_health_check_fails_without_an_answer() -> None:
    with answering(200) as port:
        pass
    assert check_health(port) == 1


def test_the_health_check_uses_a_route_of_the_service() -> None:
    (path,) = re.findall(r"'GET', '(\S+)'", instruction("HEALTHCHECK"))
    assert path in create_app(Settings()).openapi()["paths"]


@pytest.fixture
def docker(tmp_path: Path) -> Path:
    """A folder with a fake Docker that prints its arguments, if the file `engine` exists."""
    stand_in = tmp_path / "docker"
    text = f'#!/bin/sh\n[ "$1" = info ] && exec test -e {tmp_path}/engine\nprintf "%s\\n" "$@"\n'
    stand_in.write_text(text, "utf-8")
    stand_in.chmod(0o755)
    return tmp_path


def test_make_image_needs_docker(docker: Path) -> None:
    path = f"{docker}{os.pathsep}{os.environ['PATH']}"
    done = run(tool("make"), "--no-print-directory", "image", PATH=path)
    assert done.returncode != 0
    assert done.stdout == "make image needs a running Docker engine\n"


def made(docker: Path, device: str) -> tuple[str, dict[str, str]]:
    """Return the tag and the build arguments of `make image` for a device."""
    (docker / "engine").touch()
    path = f"{docker}{os.pathsep}{os.environ['PATH']}"
    done = run(
        tool("make"), "--no-print-directory", "--silent", "image", f"DEVICE={device}", PATH=path
    )
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    given = dict(word.split("=", 1) for word in words if re.match(r"[A-Z]+=", word))
    assert given.keys() <= set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))
    assert given["VERSION"] == PROJECT["project"]["version"]
    assert given["DEVICE"] in stages()
    return words[words.index("--tag") + 1], given


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_make_image_builds_the_image_of_compose(docker: Path, device: str) -> None:
    tag, given = made(docker, device)
    built = {one["image"]: one["build"]["args"] for one in OURS.values()}
    assert {name: given[name] for name in built[tag]} == {
        **built[tag],
        "MODEL": re.sub(r"^\$\{\w+:-(.*)}$", r"\1", built[tag]["MODEL"]),
    }


def test_make_image_builds_one_for_the_cpu_that_converts(docker: Path) -> None:
    tag, given = made(docker, "torch")
    assert tag == f"googlenet-service:{PROJECT['project']['version']}-torch"
    assert (given["DEVICE"], given["TORCH"]) == ("torch", "cpu")


@pytest.mark.slow
def test_the_compose_file_is_valid() -> None:
    schema = ("--builtin-schema", "vendor.compose-spec")
    said = run(tool("check-jsonschema"), *schema, "docker-compose.yml")
    assert said.returncode == 0, said.stdout


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_has_minimal_privileges(name: str) -> None:
    one = SERVICES[name]
    assert one["read_only"] is True
    assert one["cap_drop"] == ["ALL"]
    assert one["security_opt"] == ["no-new-privileges:true"]
    assert {"cpus", "memory"} <= one["deploy"]["resources"]["limits"].keys()
    assert all(port.startswith("127.0.0.1:") for port in one.get("ports", []))


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_has_a_version(name: str) -> None:
    tag = SERVICES[name]["image"].split(":")[1]
    assert re.match(r"v?\d+\.\d+\.\d+", tag)
    if name in OURS:
        assert tag.startswith(PROJECT["project"]["version"] + "-")


@pytest.mark.parametrize("name", SERVICES)
def test_every_mount_exists(name: str) -> None:
    sources = [volume.split(":")[0] for volume in SERVICES[name].get("volumes", [])]
    assert [
        source
        for source in sources
        if source not in COMPOSE["volumes"] and not (ROOT / source).exists()
    ] == []


@pytest.mark.parametrize("name", SERVING)
def test_every_variable_is_a_setting(name: str) -> None:
    chosen = settings(OURS[name].get("environment", {}))
    published = [port.rpartition(":")[2] for port in OURS[name]["ports"]]
    assert published == [str(chosen.port), str(chosen.grpc_port)]


@pytest.mark.parametrize("name", SERVING)
def test_the_grace_period_covers_a_shutdown(name: str) -> None:
    chosen = settings(OURS[name].get("environment", {}))
    patience = float(OURS[name]["stop_grace_period"].removesuffix("s"))
    assert patience > chosen.drain_seconds + chosen.grace_seconds + CLOSING


def test_one_service_is_started_by_default_and_another_on_a_gpu() -> None:
    chosen = dict(
        line.split("=")
        for line in (ROOT / ".env").read_text("utf-8").splitlines()
        if not line.startswith("#")
    )["COMPOSE_PROFILES"]
    by_profile = {one["profiles"][0]: name for name, one in SERVING.items()}
    assert by_profile == {chosen: "googlenet", "gpu": "googlenet-gpu"}
    reserved = SERVICES["googlenet-gpu"]["deploy"]["resources"]["reservations"]
    assert reserved["devices"][0]["capabilities"] == ["gpu"]
    assert settings(SERVICES["googlenet-gpu"]["environment"]).device == "cuda"


def test_services_connect_to_each_others_ports() -> None:
    port = settings({}).port
    for one in SERVING.values():
        assert one["networks"]["default"]["aliases"] == ["googlenet"]
    scraping = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text("utf-8"))
    (job,) = scraping["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"googlenet:{port}"]}]
    assert f"http://googlenet:{port}" in SERVICES["load"]["command"]
    file = ROOT / "deploy/compose/grafana/datasources.yml"
    (source,) = yaml.safe_load(file.read_text("utf-8"))["datasources"]
    (published,) = SERVICES["prometheus"]["ports"]
    assert source["url"] == f"http://prometheus:{published.split(':')[-1]}"


def test_services_wait_for_healthy_dependencies() -> None:
    needs = {name: list(one["depends_on"]) for name, one in SERVICES.items() if "depends_on" in one}
    assert needs == {"load": [*SERVING], "grafana": ["prometheus"]}
    for one in SERVICES.values():
        for needed in one.get("depends_on", {}).values():
            assert needed["condition"] == "service_healthy"


@pytest.mark.slow
def test_the_load_is_a_command_of_the_service() -> None:
    (mounted,) = SERVICES["load"]["volumes"]
    source, target, _ = mounted.split(":")
    command = [str(ROOT / source) if x == target else x for x in SERVICES["load"]["command"]]
    nowhere = ["http://127.0.0.1:9" if x.startswith("http:") else x for x in command]
    done = run(sys.executable, "-m", "service", *nowhere)
    assert (done.returncode, "127.0.0.1:9" in done.stderr) == (1, True), done.stderr


def test_grafana_reads_dashboards_from_where_they_are_mounted() -> None:
    file = ROOT / "deploy/compose/grafana/dashboards.yml"
    (provider,) = yaml.safe_load(file.read_text("utf-8"))["providers"]
    assert f"./deploy/grafana:{provider['options']['path']}:ro" in SERVICES["grafana"]["volumes"]

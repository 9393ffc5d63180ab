"""The versions that pyproject.toml allows: the oldest work, and use of private names is bounded."""

import ast
import os
import subprocess
import tomllib
from collections.abc import Iterator
from importlib import metadata

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
LINES = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["grpc"]]
REQUIRED = {canonicalize_name(one.name): one for one in map(Requirement, LINES)}

# Tests that call most dependencies, each of them once.
MODULES = (
    "api/test_classify",
    "api/test_grpc",
    "api/test_grpc_tools",
    "api/test_open_inference",
    "api/test_request_log",
    "api/test_tracing",
    "api/test_uploads",
    "imaging/test_image_decoder",
    "models/test_store",
    "server/test_connections",
    "server/test_log_config",
    "server/test_uvicorn_server",
    "serving/test_metrics",
)


def private(tree: ast.AST) -> Iterator[str]:
    """Yield the packages of which a program imports private names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [*node.module.split("."), *(one.name for one in node.names)]
        elif isinstance(node, ast.Import):
            names = [part for one in node.names for part in one.name.split(".")]
        else:
            continue
        if names[0] != "service" and any(
            part.startswith("_") and not part.startswith("__") for part in names
        ):
            yield names[0]


def overridden() -> set[str]:
    """Return the packages with a private method that is overridden or called by `super`."""
    return (
        {"uvicorn"}
        if "super()._" in (ROOT / "service/server/http_protocol.py").read_text()
        else set()
    )


def test_packages_with_private_use_have_an_upper_bound() -> None:
    found = {
        package
        for file in (ROOT / "service").rglob("*.py")
        for package in private(ast.parse(file.read_text("utf-8")))
    } | overridden()
    assert "uvicorn" in found
    for package in found - {"torch"}:
        bounds = {one.operator for one in REQUIRED[canonicalize_name(package)].specifier}
        assert bounds == {">=", "<"}, package


@pytest.mark.parametrize("name", sorted(REQUIRED))
def test_every_dependency_has_a_floor_and_allows_what_is_tested(name: str) -> None:
    specifier = REQUIRED[name].specifier
    assert ">=" in {one.operator for one in specifier}
    assert specifier.contains(metadata.version(name), prereleases=True)


@pytest.mark.slow
def test_the_oldest_versions_that_are_allowed_work() -> None:
    python = ROOT / ".venv-floors/bin/python"
    if not python.exists():
        pytest.skip("the environment of the oldest versions is missing: make floors")
    files = [str(ROOT / f"tests/{name}.py") for name in MODULES]
    theirs = ("-W", "ignore:Protobuf gencode:UserWarning")  # of grpcio-health-checking
    done = subprocess.run(  # noqa: S603 - our own tests
        [python, "-m", "pytest", "-q", "-m", "not slow", *theirs, *files],
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        cwd=ROOT, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout

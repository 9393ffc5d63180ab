"""The doctor command: what it prints of a sound machine, and each problem with its remedy."""

import re
import shutil
import socket
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, fake_backend, website
from small import save
from test_cli import QUICK, Captured
from test_supply import EXTRAS

from service import cgroups
from service.__main__ import main
from service.cli.doctor import choice, configuration, downloads, machine, model_files
from service.cli.doctor.choice import Choice
from service.cli.doctor.finding import Finding
from service.engine import gpu_info
from service.errors import InferenceFailed
from service.imaging.crops import CROP
from service.models import pytorch, store
from service.models.store import FLOATS, INT8, WEIGHTS, Store
from service.settings import Settings

NOWHERE = "http://127.0.0.1:9"  # a proxy that does not listen


pytestmark = pytest.mark.usefixtures("no_settings")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, NOWHERE)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def copied(tmp_path: Path) -> Store:
    """A store with a copy of the bundled model, to be damaged."""
    shutil.copytree(ROOT / "model_store/digits", tmp_path / "store/digits")
    return store.locate(tmp_path / "store")


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def subjects(report: str) -> list[str]:
    return re.findall(r"^([a-zA-Z]+) ", report, re.MULTILINE)


def told(finding: Finding) -> list[tuple[str, str]]:
    return [(problem.sentence, problem.remedy) for problem in finding.problems]


@pytest.mark.slow
def test_a_sound_machine_has_no_problems_on_one_screen(capsys: Captured) -> None:
    assert main(["doctor", "--model", "digits", "--port", "0", *QUICK]) == 0
    printed = capsys.readouterr()
    assert printed.err == "loading digits\n"
    lines = printed.out.splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 80
    assert "          HTTP and gRPC by 1 process" in lines
    assert "serve     digits on cpu in float32: 2 executors, batches of up to 2 rows" in lines
    assert "          whole: digits" in lines
    assert lines[-2:] == ["", "No problems"]
    page = (ROOT / "docs/operate.md").read_text("utf-8")
    example = page.split("# needs this machine\n")[1].split("```")[0]
    assert subjects(example) == subjects(printed.out)


@pytest.mark.slow
def test_every_problem_is_printed_once_with_its_remedy(
    copied: Store, taken: int, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = copied.root / "digits" / WEIGHTS
    weights.write_bytes(weights.read_bytes() + b"x")
    monkeypatch.setenv("GOOGLENET_MODLE", "digits")
    arguments = ["--model", "digits", "--model-store", str(copied.root), "--port", str(taken)]
    assert main(["doctor", *arguments]) == 1
    report = " ".join(capsys.readouterr().out.split("\n\n")[1].split())
    assert report == (
        "3 problems"
        " 1. unknown environment variable GOOGLENET_MODLE; did you mean GOOGLENET_MODEL?"
        " Remedy: correct it; googlenet-service serve --help describes every setting"
        f" 2. port {taken} of 127.0.0.1 is in use"
        " Remedy: end the process that listens there, or choose another --port"
        f" 3. {weights} was changed or damaged: its SHA-256 is not the recorded one"
        " Remedy: googlenet-service models import digits FILE"
    )


# The machine.


def chosen(nbytes: int = 0) -> list[Choice]:
    return [Choice(fake_backend().ensemble, 1, nbytes)]


def test_the_extras_are_those_of_the_package() -> None:
    assert machine.EXTRAS.keys() == EXTRAS.keys() - {"dev", "fuzz"}
    (present, absent) = machine.packages().lines
    assert present.startswith("installed: torch, ")
    assert absent.startswith("absent: ")


@pytest.mark.parametrize(("device", "problems"), [("auto", 1), ("cpu", 0)])
def test_gpus_that_auto_does_not_use_are_a_problem(
    device: str, problems: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_info, "count", lambda: 2)
    found = machine.gpu(Settings(device=device), chosen())
    assert (found.lines, len(found.problems)) == (["2"], problems)


def test_a_quota_of_part_of_a_cpu_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "cpus", lambda: 0)
    found = machine.cpu()
    assert found.lines[0].endswith(", 1 by the quota of the cgroup")
    ((sentence, _),) = told(found)
    assert "less than one CPU" in sentence


@pytest.mark.parametrize(("limit", "problems"), [(1 << 30, 1), (1 << 33, 0)])
def test_queues_larger_than_the_memory_are_a_problem(
    limit: int, problems: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "memory", lambda: limit)
    found = machine.memory(Settings(max_queue_bytes=1 << 30), chosen(1 << 29))
    assert len(found.problems) == problems
    assert found.lines[1].endswith(" GiB with its queues full")


# The settings.


def test_wrong_settings_are_problems_and_hashes_of_keys_are_not_printed(tmp_path: Path) -> None:
    none = tmp_path / "none"
    settings = Settings(
        model="digits", tls_cert_file=none, api_keys_file=none, api_key_hashes=f"a:{'0' * 64}"
    )
    found = configuration.given(settings)
    assert [sentence for sentence, _ in told(found)] == [
        f"cannot read the TLS file {none}: No such file or directory",
        f"cannot read the keys {none}: No such file or directory",
    ]
    assert found.lines == [
        f"api_key_hashes, api_keys_file={none}, model=digits, tls_cert_file={none}"
    ]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"port": 0}, None),
        ({"port": 0, "probe_port": -1}, ("port {port} of 127.0.0.1 is in use", "--probe-port")),
        ({"port": 0, "grpc_port": -1}, ("port {port} of 127.0.0.1 is in use", "--grpc-port")),
        ({"host": "203.0.113.1"}, ("cannot bind port 8000 of 203.0.113.1: ", "--host")),
    ],
)
def test_a_port_that_is_not_free_is_a_problem(
    given: dict[str, Any], problem: tuple[str, str] | None, taken: int
) -> None:
    settings = Settings(**{name: taken if value == -1 else value for name, value in given.items()})
    found = configuration.ports(settings)
    if problem is None:
        assert told(found) == []
        names = "HTTP: any free one, probes: that of HTTP, gRPC: none"
        assert found.lines == [names, "HTTP and gRPC by 1 process"]
    else:
        ((sentence, remedy),) = told(found)
        assert sentence.startswith(problem[0].format(port=taken))
        assert remedy.endswith(problem[1])


# The models.


@pytest.mark.parametrize(
    ("file", "remedy"),
    [
        (WEIGHTS, "googlenet-service models import digits FILE"),
        (FLOATS, "with PyTorch, googlenet-service models convert digits, or quantize it again"),
        (INT8, "with PyTorch, googlenet-service models convert digits, or quantize it again"),
        ("labels.tsv", "correct the manifest or the labels of digits, or delete its folder"),
    ],
)
def test_a_broken_file_of_a_model_is_a_problem(
    file: str, remedy: str, copied: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pytorch, "is_installed", lambda: False)
    assert told(model_files.models(copied)) == []
    path = copied.root / "digits" / file
    with path.open("ab") as written:
        written.write(b"more\n")
    found = model_files.models(copied)
    ((sentence, advice),) = told(found)
    assert file in sentence
    assert advice == remedy
    assert found.lines[-1] == "broken: digits"


def test_pytorch_converts_a_broken_file_again(copied: Store) -> None:
    (copied.root / "digits" / FLOATS).write_bytes(b"")
    found = model_files.models(copied)
    assert told(found) == []
    assert "whole, to be converted: digits" in found.lines


def test_broken_weights_that_have_a_source_are_fetched_again(copied: Store) -> None:
    (copied.root / "vgg16").mkdir()
    (copied.root / "vgg16" / WEIGHTS).write_bytes(b"")
    ((_, remedy),) = told(model_files.models(copied))
    assert remedy == "delete it, then: googlenet-service models fetch vgg16"


def with_source(copied: Store, url: str) -> None:
    """Give the store a model `far` that is downloaded from a URL."""
    manifest = (ROOT / "model_store/bvlc_googlenet/model.toml").read_text("utf-8")
    (copied.root / "far").mkdir()
    (copied.root / "far/model.toml").write_text(re.sub(r'url = ".*"', f'url = "{url}"', manifest))


def downloaded(settings: Settings, copied: Store) -> tuple[Sequence[str], Finding]:
    """Return the lines on the network, and what is found of downloads."""
    answers = downloads.ask(copied)
    return downloads.network(answers).lines, downloads.missing(settings, copied, answers)


@pytest.mark.parametrize(("status", "line"), [(200, "reached"), (404, "not reached: 404 Gone")])
def test_serve_downloads_what_a_host_has(status: int, line: str, copied: Store) -> None:
    with website(lambda request: request.send_error(status, "Gone")) as url:
        with_source(copied, f"{url}/weights")
        lines, found = downloaded(Settings(model="digits,far"), copied)
    assert f"127.0.0.1: {line}" in lines
    assert found.lines == (["far, before it is served"] if status == 200 else [])
    assert len(found.problems) == (status != 200)


ABSENT = "the weights of {name} are not in {root}"


@pytest.mark.parametrize(
    ("given", "sentence", "remedy"),
    [
        ({"model": "digits"}, None, None),
        ({}, ABSENT + ", and download.pytorch.org cannot be reached", "models import googlenet"),
        ({"download_weights": False}, ABSENT, "googlenet-service models fetch googlenet"),
        ({"model": "nope"}, "there is no model 'nope'; there are ", "choose another --model"),
    ],
)
def test_missing_weights_are_a_problem_if_serve_cannot_download_them(
    given: dict[str, Any], sentence: str | None, remedy: str, copied: Store
) -> None:
    lines, found = downloaded(Settings(**given), copied)
    assert len(lines) == 2
    assert all(": not reached: " in line for line in lines)
    if sentence is None:
        assert told(found) == []
    else:
        ((said, advice),) = told(found)
        assert said.startswith(sentence.format(name="googlenet", root=copied.root))
        assert remedy in advice


def test_downloads_need_pytorch_and_a_source(
    copied: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pytorch, "is_installed", lambda: False)
    _, found = downloaded(Settings(), copied)
    ((sentence, remedy),) = told(found)
    assert sentence.endswith("and fetching them needs PyTorch")
    assert remedy == pytorch.INSTALL
    save(copied, "small")
    (copied.root / "small" / WEIGHTS).unlink()
    _, found = downloaded(Settings(model="small"), copied)
    assert told(found)[0][1] == "googlenet-service models import small FILE"


def test_a_host_that_does_not_answer_is_not_waited_for(
    copied: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "NETWORK_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with_source(copied, f"http://127.0.0.1:{silent.getsockname()[1]}/weights")
        answers = downloads.ask(copied)
        assert any("127.0.0.1: n" in line for line in downloads.network(answers).lines)


# The choice.


def test_loading_is_bounded_in_time() -> None:
    with pytest.raises(InferenceFailed, match="loading took longer than 0 s"):
        choice.load(Settings(model="digits"), seconds=0)


def test_views_that_a_network_does_not_support_are_a_problem() -> None:
    ensemble = fake_backend().ensemble
    assert choice.unsupported(ensemble, "dense") == []
    small = replace(ensemble, members=(replace(ensemble.members[0], sides=(CROP,)),))
    (problem,) = choice.unsupported(small, "dense")
    assert problem.sentence.startswith("fake0 takes views of 224 pixels only")


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_is_a_problem(copied: Store) -> None:
    settings = Settings(model="digits", model_store=copied.root, precision="float16")
    serving, found = choice.choose(settings, copied)
    assert (serving, found.lines) == ([], ["digits cannot be loaded"])
    assert told(found) == [
        (
            "float16 is for GPUs; on a CPU use bfloat16, float32 or int8",
            "choose another --model, --device or --precision",
        )
    ]


@pytest.mark.slow
def test_without_the_models_the_bundled_one_tells_what_would_be_chosen(copied: Store) -> None:
    settings = Settings(model_store=copied.root, max_batch=2, cpu_threads=1, precision="float32")
    _, found = choice.choose(settings, copied)
    assert found.lines[0] == "googlenet is not there; the bundled model would run so:"
    assert found.lines[1].startswith("digits on cpu in float32")

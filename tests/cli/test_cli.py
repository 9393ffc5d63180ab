"""The command line: what each command prints, and how each failure is told."""

import functools
import gc
import hashlib
import http.server
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import httpx2
import numpy as np
import pytest
from conftest import (
    IF_X86,
    ROOT,
    fake_backend,
    mean_colour,
    on_an_old_cpu,
    served_model,
    wait_ready,
)
from test_bench import FULL, OTHERS
from test_classify import plain

from service.__main__ import main
from service.api.auth import api_keys
from service.bench import measure
from service.bench.figures import Report
from service.bench.measure import Options, Say
from service.bench.process import free_port
from service.engine.prepared_image import PreparedImage
from service.errors import ModelError
from service.models import store
from service.models.ensemble import Probabilities
from service.models.store import RECORD, WEIGHTS, Store
from service.scheduling.types import Batch
from service.serving import factory
from service.serving.backend import Backend
from service.serving.served_model import ServedModel
from service.settings import Settings

COMMANDS = ["serve", "doctor",
            "models", "models list", "models fetch", "models import", "models verify",
            "keys", "keys new", "keys check",
            "look", "classify", "evaluate", "bench", "plan"]  # fmt: skip

QUICK = ["--max-batch", "2", "--cpu-threads", "1", "--precision", "float32"]  # to load

pytestmark = pytest.mark.usefixtures("no_settings")

Captured = pytest.CaptureFixture[str]


def cells(printed: str) -> list[list[str]]:
    """The cells of a printed table, by rows."""
    return [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in printed.splitlines()
        if line.startswith("│")
    ]


@pytest.fixture
def real(real_store: Store) -> list[str]:
    """The options for the real weights, loaded quickly."""
    return ["--model", "bvlc_googlenet", "--model-store", str(real_store.root), *QUICK]


@pytest.fixture
def digits() -> list[str]:
    """The options for the bundled model, which is small."""
    return ["--model", "digits", *QUICK]


@pytest.fixture
def damaged(real_store: Store, tmp_path: Path) -> Path:
    """A store with weights of which a byte was changed."""
    root = tmp_path / "damaged"
    shutil.copytree(real_store.root, root)
    with (root / "bvlc_googlenet" / WEIGHTS).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")
    return root


def refused(arguments: list[str], capsys: Captured) -> tuple[int, str]:
    """Run a command that fails before it prints anything, and give its status and sentence."""
    try:
        status = main(arguments)
    except SystemExit as stop:  # argparse's way
        status = int(stop.code or 0)
    printed = capsys.readouterr()
    assert printed.out == ""
    return status, printed.err


# Calling.


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_has_help(command: str, capsys: Captured) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: googlenet-service {command}".rstrip())


def test_every_setting_is_an_option_of_serve_with_its_help(capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    for name, setting in Settings.model_fields.items():
        assert setting.description, name
        default = "" if setting.default is None else f" (default: {setting.default})"
        assert f"--{name.replace('_', '-')} VALUE {setting.description}{default}" in told


VALUES = {
    "host": "::1", "port": "0", "model": "a,b", "require_model": "True", "views": "paper",
    "device": "cuda:1", "precision": "bfloat16", "model_store": "here",
    "timeout_seconds": "1.5", "max_batch": "3", "cpu_threads": "2",
    "max_body_bytes": "2048", "max_pixels": "7", "max_images_per_request": "2",
    "max_inflight_body_bytes": "4096",
    "decode_timeout_seconds": "5.5", "upload_timeout_seconds": "2.5", "max_queue_bytes": "8192",
    "decode_threads": "2", "heic": "True",
    "stall_seconds": "9.5", "log_level": "debug", "log_format": "text", "download_weights": "False",
    "api_keys_file": "keys.toml", "api_key_hashes": f"web:{64 * 'f'}",
    "cors_origins": "https://a,http://b:1",
    "cors_headers": "X-A,x-b",
    "drain_seconds": "3.5", "grace_seconds": "4.5", "probe_port": "8001", "grpc_port": "8002",
    "header_timeout_seconds": "1.5", "max_header_bytes": "1024", "send_timeout_seconds": "2.5",
    "keep_alive_seconds": "5", "max_connections": "10", "backlog": "9",
    "tls_cert_file": "cert.pem", "tls_key_file": "key.pem", "tls_client_ca_file": "ca.pem",
    "trusted_proxies": "10.0.0.0/8,::1", "root_path": "/vision/v1",
    "cache_bytes": "4096", "background_share": "0.1",
    "additional_models": "a:b,c@1.0", "max_models": "2", "max_model_bytes": "5000",
    "model_poll_seconds": "7.5",
    "shadow": "d,e", "shadow_share": "0.5",
    "fetch_images": "True", "fetch_images_from": "a.org,*.b.org", "fetch_images_ports": "8443",
    "fetch_images_networks": "10.1.0.0/16,fd00::/8", "fetch_timeout_seconds": "2.5",
    "api_processes": "3", "adapters": "huggingface,torchserve",
}  # fmt: skip


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_has_a_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"GOOGLENET_{name.upper()}", VALUES[name])
    assert str(getattr(Settings(), name)) == VALUES[name]
    assert Settings().model_dump(exclude={name}) == {
        other: field.default for other, field in Settings.model_fields.items() if other != name
    }


def test_an_option_overrides_a_variable(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLENET_MODEL_STORE", str(tmp_path / "a"))
    assert main(["models", "list"]) == 0
    assert str(tmp_path / "a") in capsys.readouterr().out.replace("\n", "")
    assert main(["models", "list", "--model-store", str(tmp_path / "b")]) == 0
    assert str(tmp_path / "b") in capsys.readouterr().out.replace("\n", "")


THERE_ARE = "there are alexnet, bvlc_googlenet, densenet121, digits, googlenet, resnet50, vgg16"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("serve --port 99999", "--port: Input should be less than or equal to 65535"),
        ("serve --port soon", "--port: Input should be a valid integer"),
        ("serve --max-batch=-1", "--max-batch: Input should be greater than or equal to 0"),
        ("serve --model ../secret", "--model: String should match pattern"),
        ("serve --device tpu", "--device: String should match pattern"),
        ("serve --precision float8", "--precision: Input should be 'auto', 'float32'"),
        ("serve --log-level loud", "--log-level: Input should be 'debug'"),
        (
            "serve --timeout-seconds 0",
            "--timeout-seconds: Input should be greater than or equal to 0.01",
        ),
        ("classify a.jpg --views eleven", "--views: Input should be 'single', 'ten'"),
        ("classify a.jpg --engine ray --url http://a", "--url: not allowed with argument --engine"),
        ("classify a.jpg --engine spark", "--engine: "),
        ("classify a.jpg --ray-actors 0", "--ray-actors: "),
        ("classify a.jpg --top-k many", "--top-k: "),
        ("classify a.jpg --top-k 0", "--top-k: "),
        ("classify a.jpg --top-k -3", "--top-k: "),
        (
            "evaluate photos --plans ten,eleven",
            "'eleven' is not one of single, ten, paper, dense, adaptive",
        ),
        ("bench photos --rounds 0", "--rounds: '0' is not a whole number from 1"),
        ("bench photos --seconds -1", "--seconds: "),
        ("bench photos --slo fast", "--slo: 'fast' is not a whole number from 1"),
        (
            "bench photos --cpu-threads=-1",
            "--cpu-threads: Input should be greater than or equal to 0",
        ),
        ("bench", "the following arguments are required: DIR"),
        ("serve --backlog many", "--backlog: Input should be a valid integer"),
        ("serve --root-path vision/", "--root-path: String should match pattern"),
        ("serve -- --port 1", "unrecognized arguments: "),
        ("serve --speed 9", "unrecognized arguments: --speed 9"),
        ("classify", "the following arguments are required: FILE"),
        ("models", "the following arguments are required: ACTION"),
        ("paint", "invalid choice: 'paint'"),
        ("", "the following arguments are required: COMMAND"),
    ],
)
def test_invalid_arguments_are_an_error(arguments: str, sentence: str, capsys: Captured) -> None:
    status, told = refused(arguments.split(), capsys)
    assert status == 2
    assert sentence in told.splitlines()[-1]


def test_an_invalid_variable_is_an_error(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLENET_MAX_BATCH", "many")
    status, told = refused(["models", "list"], capsys)
    assert status == 2
    assert told.startswith("googlenet-service: --max-batch: Input should be a valid integer")
    assert told.count("\n") == 1


# Models.


def test_models_are_listed(real_store: Store, capsys: Captured) -> None:
    assert main(["models", "list", "--model-store", str(real_store.root)]) == 0
    rows = cells(capsys.readouterr().out)
    assert [row[:3] for row in rows if row[0]] == [
        ["alexnet", "alexnet", "not fetched"],
        ["bvlc_googlenet", "googlenet", "ready"],
        ["densenet121", "densenet121", "not fetched"],
        ["digits", "googlenet", "ready"],
        ["googlenet", "torchvision_googlenet", "not fetched"],
        ["resnet50", "resnet50", "not fetched"],
        ["vgg16", "vgg16", "not fetched"],
    ]


def test_a_file_is_imported(shared: Path, tmp_path: Path, capsys: Captured) -> None:
    weights = str(shared / "weights/bvlc_googlenet.caffemodel")
    assert (
        main(["models", "import", "bvlc_googlenet", weights, "--model-store", str(tmp_path)]) == 0
    )
    digest = hashlib.sha256((tmp_path / "bvlc_googlenet" / WEIGHTS).read_bytes()).hexdigest()
    assert capsys.readouterr().out == f"bvlc_googlenet is in {tmp_path}, SHA-256 {digest}\n"


def test_weights_are_verified(real_store: Store, tmp_path: Path, capsys: Captured) -> None:
    for root, names in ((real_store.root, ["bvlc_googlenet", "digits"]), (tmp_path, ["digits"])):
        assert main(["models", "verify", "--model-store", str(root)]) == 0
        lines = [f"{name}: {store.locate(root).verify(name)}\n" for name in names]
        assert capsys.readouterr().out == "".join(lines)


def test_damaged_weights_are_an_error(damaged: Path, capsys: Captured) -> None:
    assert main(["models", "verify", "--model-store", str(damaged)]) == 1
    told = capsys.readouterr().err
    path = damaged / "bvlc_googlenet" / WEIGHTS
    why = "was changed or damaged: its SHA-256 is not the recorded one"
    assert told == f"bvlc_googlenet: {path} {why}\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("models fetch vgg", f"there is no model 'vgg'; {THERE_ARE}"),
        ("models fetch ../up", f"there is no model '../up'; {THERE_ARE}"),
        ("models import vgg a.pth", f"there is no model 'vgg'; {THERE_ARE}"),
        ("models import googlenet a.pth", "there is no file a.pth"),
        ("classify a.jpg", "there is no file a.jpg"),
        ("classify images", "there is no file images"),
    ],
)
def test_a_missing_model_or_file_is_an_error(
    arguments: str, sentence: str, tmp_path: Path, capsys: Captured
) -> None:
    status, told = refused([*arguments.split(), "--model-store", str(tmp_path)], capsys)
    assert (status, told.splitlines()[-1]) == (1, f"googlenet-service: {sentence}")


@pytest.mark.parametrize("ending", ["pth", "safetensors", "caffemodel", "txt"])
def test_a_file_without_weights_is_an_error(ending: str, tmp_path: Path, capsys: Captured) -> None:
    file = tmp_path / f"a.{ending}"
    file.write_text("no weights")
    status, told = refused(
        ["models", "import", "googlenet", str(file), "--model-store", str(tmp_path)], capsys
    )
    assert status == 1
    assert told.startswith("googlenet-service: ")
    assert f"a.{ending}" in told
    assert told.count("\n") == 1
    assert not [*tmp_path.rglob(WEIGHTS)]


# Fetching, from a web server of our own.


@pytest.fixture
def remote(shared: Path, tmp_path: Path) -> Iterator[Path]:
    """A store whose one model can be fetched from a web server."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    weights = shared / "weights"
    folder = tmp_path / "store/far"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "model_store/imagenet.tsv", folder.parent)
    manifest = (ROOT / "model_store/bvlc_googlenet/model.toml").read_text("utf-8")
    digest = hashlib.sha1((weights / "bvlc_googlenet.caffemodel").read_bytes()).hexdigest()  # noqa: S324 - no secret
    files = functools.partial(Quiet, directory=str(weights))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), files) as server:
        ours = f"http://127.0.0.1:{server.server_port}/bvlc_googlenet.caffemodel"
        manifest = manifest.replace("405fc5acd08a3bb12de8ee5e23a96bec22f08204", digest)
        manifest = manifest.replace(
            "http://dl.caffe.berkeleyvision.org/bvlc_googlenet.caffemodel", ours
        )
        (folder / "model.toml").write_text(manifest, "utf-8")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder.parent
        server.shutdown()
        thread.join()


def edit_manifest(root: Path, pattern: str, replacement: str) -> None:
    manifest = root / "far/model.toml"
    manifest.write_text(re.sub(pattern, replacement, manifest.read_text()))


def test_weights_are_fetched_once(remote: Path, capsys: Captured) -> None:
    assert main(["models", "fetch", "far", "--model-store", str(remote)]) == 0
    digest = (remote / "far" / (WEIGHTS + RECORD)).read_text().split()[0]
    told = capsys.readouterr()
    assert told.out == ""
    assert f"far is in {remote}, SHA-256 {digest}\n" in told.err
    before = (remote / "far" / WEIGHTS).stat().st_mtime_ns
    assert main(["models", "fetch", "far", "--model-store", str(remote)]) == 0
    assert (remote / "far" / WEIGHTS).stat().st_mtime_ns == before


def test_a_failed_download_is_an_error_with_advice(remote: Path, capsys: Captured) -> None:
    edit_manifest(remote, r"\.caffemodel", ".gone")
    status, told = refused(["models", "fetch", "far", "--model-store", str(remote)], capsys)
    assert status == 1
    problem, missing, fetch, bring = told.strip().splitlines()[-4:]
    assert problem.endswith(".gone returned 404 File not found")
    assert problem.startswith("googlenet-service: http://127.0.0.1:")
    assert missing == f"The weights of 'far' are not in {remote}."
    assert fetch.endswith("googlenet-service models fetch far")
    assert bring.endswith("googlenet-service models import far FILE")


# Photos, without a server.


@pytest.mark.slow
def test_photos_are_ranked_in_a_table_and_as_json_and_a_bad_photo_fails_the_command(
    real: list[str], shared: Path, tmp_path: Path, capsys: Captured
) -> None:
    beagle, tractor = (str(shared / f"photos/flickr/{n}.jpg") for n in ("beagle", "tractor"))
    assert main(["classify", beagle, tractor, *real, "--views", "single", "--top-k", "2"]) == 0
    rows = cells(capsys.readouterr().out)
    assert [row[:2] for row in rows[::2]] == [["beagle.jpg", "beagle"], ["tractor.jpg", "tractor"]]
    assert [row[0] for row in rows[1::2]] == ["", ""]
    assert all(row[2].endswith(" %") for row in rows)

    text = tmp_path / "text.jpg"
    text.write_text("no image")
    assert main(["classify", beagle, str(text), *real, "--json"]) == 1
    good, bad = json.loads(capsys.readouterr().out)
    assert good["file"] == beagle
    assert len(good["predictions"]) == 5
    first = good["predictions"][0]
    assert (first["label"], first["wnid"], first["index"]) == ("beagle", "n02088364", 162)
    assert 0.5 < first["probability"] < 1
    sentence = "not a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF image"
    assert bad == {"file": str(text), "error": sentence}


@pytest.mark.slow
@pytest.mark.parametrize("form", [["--json"], []])
def test_names_of_files_are_printed_without_markup(
    form: list[str], digits: list[str], tmp_path: Path, capsys: Captured
) -> None:
    names = ["[red]a.jpg", "b[1].jpg", ":dog:.jpg"]
    for name in names:
        (tmp_path / name).write_text("no image")
    files = [str(tmp_path / name) for name in names]
    assert main(["classify", *files, *digits, *form]) == 1
    printed = capsys.readouterr().out
    for name in names:
        assert name in printed


def test_missing_weights_are_an_error_in_three_lines(shared: Path, tmp_path: Path) -> None:
    done = subprocess.run(  # noqa: S603 - ourselves
        [sys.executable, "-m", "service", "classify", shared / "photos/flickr/beagle.jpg",
         "--model-store", tmp_path],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    missing, fetch, bring = done.stderr.splitlines()
    assert missing == f"googlenet-service: The weights of 'googlenet' are not in {tmp_path}."
    assert fetch.endswith("googlenet-service models fetch googlenet")
    assert bring.endswith("googlenet-service models import googlenet FILE")


@pytest.mark.slow
@IF_X86
@pytest.mark.parametrize(
    ("precision", "status", "said"),
    [("auto", 0, '"label": "3"'), ("bfloat16", 1, "this CPU does not compute digits in bfloat16")],
)
def test_a_cpu_without_instructions_for_half_precision_serves_in_float32(
    precision: str, status: int, said: str
) -> None:
    digit = ROOT / "model_store/digits/held_out/3.png"
    options = ["--model", "digits", "--json", "--top-k", "1", "--precision", precision]
    done = on_an_old_cpu("classify", str(digit), *options)
    assert done.returncode == status
    assert said in (done.stderr if status else done.stdout)


@pytest.fixture
def photos(shared: Path, tmp_path: Path) -> Path:
    """Six labelled photos, and a file that is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for photo in sorted((shared / "photos").glob("*.JPEG"))[:6]:
        (folder / photo.name).symlink_to(photo)
    (folder / "n01491361_no_image.JPEG").write_text("no image")
    return folder


@pytest.mark.slow
def test_the_accuracy_is_printed_in_a_table_and_as_json(
    photos: Path, real: list[str], capsys: Captured
) -> None:
    sentence = "n01491361_no_image.JPEG: not a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF image"
    assert main(["evaluate", str(photos), *real, "--plans", "single", "--json"]) == 0
    printed = capsys.readouterr()
    [score] = json.loads(printed.out)
    assert (score["views"], score["photos"], score["unreadable"]) == ("single", 7, [sentence])
    assert 3 <= score["top1"] <= score["top5"] <= 6
    assert printed.err.endswith(f"{sentence}\n")

    assert main(["evaluate", str(photos), *real, "--plans", "single,dense"]) == 0
    printed = capsys.readouterr()
    rows = cells(printed.out)
    assert [row[:2] for row in rows] == [["single", "6"], ["dense", "6"]]
    for _, _, *rates in rows:
        top1, top5 = (float(rate.removesuffix(" %")) for rate in rates)
        assert 50 <= top1 <= top5 <= 100
    assert printed.err.count(sentence) == 1


def test_a_folder_without_labelled_photos_is_an_error(
    digits: list[str], tmp_path: Path, capsys: Captured
) -> None:
    status, told = refused(["evaluate", str(tmp_path), *digits], capsys)
    assert status == 1
    assert told.splitlines()[-1].startswith(f"googlenet-service: {tmp_path} has no photos named")


# Number formats, with a model that confuses red with green in float16.

COLOURS = (("red", "red"), ("lime", "green"), ("blue", "blue"))


def of_colours(settings: Settings) -> ServedModel:
    """Know three colours, as well as the number format allows, and int8 not at all."""
    mixed = 0.6 if settings.precision == "float16" else 0.01 * (settings.precision != "float32")

    def run(batch: Batch[PreparedImage]) -> list[Probabilities]:
        return [
            np.array([(1 - mixed) * red + mixed * green, mixed * red + (1 - mixed) * green, blue])
            for red, green, blue in mean_colour(batch)
        ]

    def load(_: object) -> Backend:
        if settings.precision == "int8":
            raise ModelError("not calibrated")
        return fake_backend(run)

    return served_model(load)


@pytest.fixture
def coloured(tmp_path: Path) -> Path:
    """Photos of three colours in folders of the first classes, and a file that is none."""
    for number, (colour, label) in enumerate(COLOURS):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / f"{label}.png").write_bytes(plain(colour))
    (tmp_path / "0/text.png").write_text("no image")
    return tmp_path


def test_number_formats_are_compared_with_float32(
    coloured: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factory, "create_served_model", of_colours)
    options = ["--compare", "--plans", "single,ten", "--model", "digits"]
    assert main(["evaluate", str(coloured), *options]) == 0
    printed = capsys.readouterr().out
    assert cells(printed) == [
        ["float32", "3", "100.0 %", "100.0 %", "3", "0.0000"],
        ["bfloat16", "3", "100.0 %", "100.0 %", "3", "0.0100"],
        ["float16", "3", "33.3 %", "100.0 %", "1", "0.6000"],
    ]
    assert [line for line in printed.splitlines() if ": " in line] == [
        "float16: red.png: green 0.600, exactly red 1.000",
        "float16: green.png: red 0.600, exactly green 1.000",
        "int8: not calibrated",
    ]


# Measuring: `tests/bench/test_bench.py` measures, here a report is given.


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """The arguments of each measurement, which takes no time."""
    measured: list[tuple[object, ...]] = []

    def instant(report: Report) -> Callable[..., Awaitable[Report]]:
        async def measure_(subject: object, folder: Path, options: Options, say: Say) -> Report:
            measured.append((subject, folder, options))
            say("one moment")
            return report

        return measure_

    monkeypatch.setattr(measure, "other", instant(OTHERS))
    monkeypatch.setattr(measure, "own", instant(FULL))
    return measured


def test_bench_measures_the_service_at_a_url(
    measured: list[tuple[object, ...]], capsys: Captured
) -> None:
    options = "--seconds 2 --rounds 4 --requests 50 --slo 250 --deadline 1500"
    assert main(["bench", "photos", "--url", "http://h:1", *options.split()]) == 0
    assert measured == [("http://h:1", Path("photos"), Options(2, 4, 50, 0.25, 1.5))]
    printed = capsys.readouterr()
    assert "Closed loop" in printed.out
    assert "ready in" not in printed.out
    assert printed.err == "one moment\n"


def test_bench_measures_a_new_service_with_the_settings(
    measured: list[tuple[object, ...]], capsys: Captured
) -> None:
    assert main(["bench", "photos", "--precision", "float32", "--cpu-threads", "2"]) == 0
    chosen = Settings(precision="float32", cpu_threads=2)
    assert measured == [(chosen, Path("photos"), Options(5, 3, 10_000, 0, 1))]
    settings = measured[0][0]
    assert isinstance(settings, Settings)
    assert settings.model_fields_set == {"precision", "cpu_threads"}
    assert "ready in 9.3 s" in capsys.readouterr().out


@pytest.mark.parametrize("where", [[], ["--url", "http://h:1"]])
def test_a_report_is_printed_as_json(
    measured: list[tuple[object, ...]], where: list[str], capsys: Captured
) -> None:
    assert main(["bench", "photos", "--json", *where]) == 0
    assert len(measured) == 1
    report = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert report["subject"]["name"] == "bvlc_googlenet"
    assert (report["limit"] is None) == bool(where)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("localhost:8000", "'localhost:8000' is not of the form http://host:port"),
        ("https://localhost", "'https://localhost' is not of the form http://host:port"),
        ("http://127.0.0.1:1", "no ready service at 127.0.0.1:1"),
    ],
)
def test_bench_without_a_service_is_an_error(
    url: str, sentence: str, coloured: Path, capsys: Captured
) -> None:
    status, told = refused(["bench", str(coloured / "0"), "--url", url], capsys)
    assert (status, told) == (1, f"googlenet-service: {sentence}\n")


@pytest.mark.parametrize("where", [[], ["--url", "http://127.0.0.1:1"]])
@pytest.mark.parametrize(
    ("name", "problem"), [("absent", "is not a folder"), ("", "has no images")]
)
def test_bench_without_images_is_an_error(
    where: list[str], name: str, problem: str, tmp_path: Path, capsys: Captured
) -> None:
    status, sentence = refused(["bench", str(tmp_path / name), *where], capsys)
    assert (status, sentence) == (1, f"googlenet-service: {tmp_path / name} {problem}\n")


# Serving, in this process: `tests/server/test_process.py` has one of its own.


@pytest.fixture
def _signals_and_log_as_before() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)  # which main() handles in its own way
    root = logging.getLogger()
    level, handlers = root.level, [*root.handlers]
    yield
    signal.signal(signal.SIGTERM, before)
    root.setLevel(level)
    root.handlers[:] = handlers
    gc.unfreeze()


def once_ready(port: int, ask: Callable[[httpx2.Client], None]) -> threading.Thread:
    """Ask a service that will be ready on this port, then stop this process's server."""

    def wait_and_ask() -> None:
        transport = httpx2.HTTPTransport(retries=20)
        try:
            with httpx2.Client(base_url=f"http://127.0.0.1:{port}", transport=transport) as client:
                wait_ready(client)
                ask(client)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=wait_and_ask)
    thread.start()
    return thread


@pytest.mark.usefixtures("_signals_and_log_as_before")
@pytest.mark.slow
def test_serve_downloads_missing_weights_and_stops(
    remote: Path, beagle: bytes, capfd: Captured
) -> None:
    answers = []

    def ask(client: httpx2.Client) -> None:
        answers.append(client.post("/classify?views=single&top_k=1", files={"file": beagle}))

    port = free_port()
    asking = once_ready(port, ask)
    where = ["--model", "far", "--model-store", str(remote), "--port", str(port)]
    status = main(["serve", *where, *QUICK])
    asking.join()
    assert status == 0
    assert answers[0].json()["predictions"][0]["label"] == "beagle"
    assert "server" not in answers[0].headers
    assert f"far is in {remote}" in capfd.readouterr().err  # of the process that fetched it


@pytest.mark.usefixtures("_signals_and_log_as_before")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--tls-cert-file /absent.pem", "cannot read the TLS file /absent.pem: No such file"),
        ("--tls-key-file key.pem", "--tls-key-file and --tls-client-ca-file need --tls-cert-file"),
        ("--trusted-proxies nginx", "--trusted-proxies: 'nginx' does not appear to be an IPv4"),
        ("--trusted-proxies ::1,10.0.0.1/8", "--trusted-proxies: 10.0.0.1/8 has host bits set"),
    ],
)
def test_unusable_settings_are_an_error_before_the_start(
    arguments: str, sentence: str, capsys: Captured
) -> None:
    status, told = refused(["serve", "--model", "digits", *arguments.split()], capsys)
    assert status == 2
    assert told.startswith(f"googlenet-service: {sentence}")
    assert told.count("\n") == 1


@pytest.mark.usefixtures("_signals_and_log_as_before")
@pytest.mark.parametrize("strict", ["no", "yes"])
def test_serve_checks_the_names_of_variables(
    strict: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("GOOGLENET_MODLE", "digits")
    arguments = ["serve", "--model", "digits", "--require-model", strict]
    status, printed = refused([*arguments, "--tls-key-file", "key.pem"], capsys)
    assert status == 2
    message = "unknown environment variable GOOGLENET_MODLE; did you mean GOOGLENET_MODEL?"
    assert (message in caplog.messages) == (strict == "no")
    assert (f"googlenet-service: {message}\n" == printed) == (strict == "yes")


@pytest.mark.usefixtures("_signals_and_log_as_before")
def test_serve_fails_if_the_model_cannot_be_loaded(damaged: Path) -> None:
    arguments = ["serve", "--model", "bvlc_googlenet", "--model-store", str(damaged), "--port", "0"]
    assert main(arguments) == 1


@pytest.mark.usefixtures("_signals_and_log_as_before")
@pytest.mark.slow
def test_serve_continues_if_a_later_model_cannot_be_loaded(
    tmp_path: Path,
) -> None:
    shutil.copytree(ROOT / "model_store/digits", tmp_path / "broken")
    with (tmp_path / "broken/weights.safetensors").open("r+b") as file:
        file.write(b"no weights")
    key, file_of_keys = api_keys.new(), tmp_path / "keys.toml"
    digest = api_keys.digest(key.encode()).hex()
    file_of_keys.write_text(f'[admin]\nsha256 = "{digest}"\nmanages = true\n')
    statuses: list[int] = []

    def ask(client: httpx2.Client) -> None:
        headers = {"X-API-Key": key}
        statuses.append(client.put("/models/broken", headers=headers, timeout=60).status_code)
        statuses.append(client.get("/readyz").status_code)

    port = free_port()
    asking = once_ready(port, ask)
    where = ["--model", "digits", "--model-store", str(tmp_path), "--port", str(port)]
    assert main(["serve", *where, "--api-keys-file", str(file_of_keys), *QUICK]) == 0
    asking.join()
    assert statuses == [422, 200]


@pytest.mark.usefixtures("_signals_and_log_as_before")
def test_serve_fails_if_weights_cannot_be_downloaded(remote: Path, capfd: Captured) -> None:
    edit_manifest(remote, r"\.caffemodel", ".gone")
    assert main(["serve", "--model", "far", "--model-store", str(remote), "--port", "0"]) == 1
    told = capfd.readouterr().err
    assert told.count(".gone returned 404 File not found") == 1
    assert "Uvicorn" not in told


@pytest.mark.usefixtures("_signals_and_log_as_before")
def test_the_exit_status_of_a_signal(tmp_path: Path, capsys: Captured) -> None:
    assert main(["models", "list", "--model-store", str(tmp_path)]) == 0
    assert capsys.readouterr().out
    with pytest.raises(SystemExit, match="143"):
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_stops_a_download(remote: Path) -> None:
    command = [sys.executable, "-m", "service", "serve", "--model", "far", "--port", "0"]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        edit_manifest(remote, r"127\.0\.0\.1:\d+", f"127.0.0.1:{silent.getsockname()[1]}")
        process = subprocess.Popen([*command, "--model-store", str(remote)], cwd=ROOT)  # noqa: S603 - ourselves
        silent.settimeout(60)
        download, _ = silent.accept()
        with download:
            assert download.recv(65536).startswith(b"GET ")
            process.terminate()
            assert process.wait(timeout=20) == 0
            assert download.recv(1) == b""  # the process that fetched has ended, too


@pytest.mark.usefixtures("_signals_and_log_as_before")
def test_serve_downloads_nothing_if_disabled(
    remote: Path, caplog: pytest.LogCaptureFixture
) -> None:
    where = ["--model", "far", "--model-store", str(remote), "--port", "0"]
    assert main(["serve", "--download-weights", "no", *where]) == 1
    assert f"The weights of 'far' are not in {remote}" in caplog.text
    assert not [*remote.glob("far/*.safetensors*")]


# Without a network.


@pytest.fixture
def unreachable(remote: Path) -> Path:
    """A store whose model is to be fetched from a port at which nothing listens."""
    edit_manifest(remote, r"127\.0\.0\.1:\d+", f"127.0.0.1:{free_port()}")
    return remote


def test_the_exit_status_of_an_unreachable_server(unreachable: Path, capsys: Captured) -> None:
    status, told = refused(["models", "fetch", "far", "--model-store", str(unreachable)], capsys)
    assert status == 69
    assert "Connection refused" in told


@pytest.mark.usefixtures("_signals_and_log_as_before")
@pytest.mark.slow
def test_the_bundled_model_is_served_without_a_network_with_a_notice(
    unreachable: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With nothing but what a checkout has, a digit that no training has seen is recognised."""
    answers = {}

    def ask(client: httpx2.Client) -> None:
        file = (ROOT / "model_store/digits/held_out/7.png").read_bytes()
        answers["answer"] = client.post("/classify", files={"file": file}).json()
        answers["models"] = client.get("/models").json()["models"][0]
        answers["ready"] = client.get("/readyz?verbose").text

    port = free_port()
    asking = once_ready(port, ask)
    where = ["--model", "far", "--model-store", str(unreachable), "--port", str(port)]
    assert main(["serve", *where, *QUICK]) == 0
    asking.join()
    notice = "This is the bundled model: it knows handwritten digits and nothing else."
    assert answers["answer"]["predictions"][0]["label"] == "7"
    assert (answers["answer"]["model"], answers["answer"]["notice"]) == ("digits", notice)
    assert (answers["models"]["name"], answers["models"]["notice"]) == ("digits", notice)
    assert f"[i]notice {notice}\n" in answers["ready"]
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert warnings == ["cannot download far, serving the bundled model", f"digits: {notice}"]


@pytest.mark.usefixtures("_signals_and_log_as_before")
def test_require_model_fails_without_the_model(
    unreachable: Path, monkeypatch: pytest.MonkeyPatch, capfd: Captured
) -> None:
    monkeypatch.setenv("GOOGLENET_REQUIRE_MODEL", "1")
    status = main(["serve", "--model", "far", "--model-store", str(unreachable), "--port", "0"])
    assert status == 69
    told = capfd.readouterr().err
    assert "Connection refused" in told
    assert "bundled" not in told

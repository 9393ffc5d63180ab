"""`classify` on folders and archives, into files: all of them once, whatever happens."""

import asyncio
import csv
import fcntl
import gzip
import io
import itertools
import json
import os
import random
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rich.console
from conftest import ROOT, FakeBackend, Served, fake_backend, mean_colour, served_model
from test_classify import plain
from test_client import HOST, live, misbehaving, silent

from service.__main__ import main
from service.cli import parser
from service.client import Client, Ranking, Unavailable, Unreachable
from service.engine.prepared_image import PreparedImage
from service.errors import BulkError, InferenceFailed, ServiceError
from service.imaging.archives import Source
from service.models import store
from service.models.ensemble import Probabilities
from service.models.store import MANIFEST, Store
from service.offline.bulk import (
    image_source,
    ordered_tasks,
    remote_runner,
    results_file,
    results_parquet,
)
from service.offline.bulk.aimd_window import MOST, AimdWindow
from service.offline.bulk.results_file import CSV, JSONL, Format, Row
from service.scheduling.types import Batch
from service.serving import factory
from service.serving.served_model import ServedModel
from service.settings import Settings

pytestmark = pytest.mark.usefixtures("no_settings")

Captured = pytest.CaptureFixture[str]

LABELS = {"red": "red", "lime": "green", "blue": "blue"}  # of colours, by the fake model
BROKEN = "the PNG image is broken or cut short; send it whole"
MAX = 100_000  # bytes


Run = Callable[[Batch[PreparedImage]], Sequence[Probabilities]]


def faked(run: Run) -> Callable[[Settings], ServedModel]:
    return lambda settings: served_model(
        lambda _: named(fake_backend(run), settings), max_pixels=settings.max_pixels
    )


def renamed(backend: FakeBackend, name: str, version: str) -> FakeBackend:
    """Give a fake another name and version, as if another model were loaded."""
    member = replace(backend.ensemble.members[0], name=name, version=version)
    backend.ensemble = replace(backend.ensemble, members=(member,))
    return backend


def named(backend: FakeBackend, settings: Settings) -> FakeBackend:
    """Name a fake as the model in whose place it is."""
    version = store.locate(settings.model_store).version(settings.model)
    return renamed(backend, settings.model, version)


@pytest.fixture
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that knows three colours."""
    monkeypatch.setattr(factory, "create_served_model", faked(mean_colour))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images, one of them below, one that is broken, and what is no image."""
    root = tmp_path / "images"
    (root / "b/.hidden").mkdir(parents=True)
    (root / "a.png").write_bytes(plain("red"))
    (root / "b" / "c,\n\r\"d'é.PNG").write_bytes(plain("lime"))
    (root / "b/broken.png").write_bytes(plain("red")[:-30])
    (root / "z.png").symlink_to(root / "a.png")
    (root / "readme.txt").write_text("no image")
    (root / ".a.png").write_bytes(b"none")
    (root / "b/.hidden/a.png").write_bytes(b"none")
    (root / "folder.png").mkdir()
    return root


def names(folder: Path) -> list[str]:
    """Name the images of `folder`, in order."""
    return [f"{folder}/{name}" for name in ("a.png", "z.png", "b/broken.png", "b/c,\n\r\"d'é.PNG")]


def read(out: Path) -> list[dict[str, Any]]:
    """Read results as another program does."""
    if out.suffix == ".jsonl":
        return [json.loads(line) for line in out.read_text("utf-8").split("\n") if line]
    if out.suffix == ".parquet":
        rows: list[dict[str, Any]] = pq.read_table(out).to_pylist()
        return rows
    with out.open(encoding="utf-8", newline="") as file:
        return [
            {
                **{name: cell or None for name, cell in row.items()},
                "index": int(row["index"]) if row["index"] else None,
                "probability": float(row["probability"]) if row["probability"] else None,
                "predictions": json.loads(row["predictions"]),
            }
            for row in csv.DictReader(file)
        ]


FORMATS = pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])


# Files of results.


@FORMATS
@pytest.mark.usefixtures("_fake")
def test_results_are_written_in_order_and_not_twice(
    ending: str, folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / f"out.{ending}"
    command = ["classify", str(folder), "--out", str(out), "--top-k", "2"]
    assert main(command) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("4 images, 1 failures, ")
    note = f"skipped, not images of a supported format: 1 .txt ({folder}/readme.txt)"
    assert printed.err.endswith(f" images a second; {note}\n")
    rows = read(out)
    assert [row["file"] for row in rows] == names(folder)
    assert [row["label"] for row in rows] == ["red", "red", None, "green"]
    assert [row["error"] for row in rows] == [None, None, BROKEN, None]
    assert rows[0].keys() == {*results_file.COLUMNS}
    made = [tuple(row[name] for name in results_file.ORIGIN) for row in rows]
    named = ("googlenet", "1", "adaptive")  # by default
    assert made == [named, named, (None, None, None), named]
    assert (rows[3]["wnid"], rows[3]["index"]) == (None, 1)
    assert rows[3]["probability"] == pytest.approx(1)
    assert [prediction["label"] for prediction in rows[3]["predictions"]] == ["green", "red"]
    assert rows[2]["predictions"] == []
    before = out.read_bytes()
    assert main(command) == 1  # there is a bad one still
    assert out.read_bytes() == before
    summary = "0 images, 0 failures, 0.0 s, 0.0 images a second; 4 were done before"
    assert capsys.readouterr().err.startswith(summary)
    (folder / "b/a.png").write_bytes(plain("blue"))
    (folder / "b/b.png").write_bytes(bytes(5000))
    assert main([*command, "--max-body-bytes", "4096"]) == 1
    more = [f"{folder}/b/a.png", f"{folder}/b/b.png"]
    assert [row["file"] for row in read(out)] == [*names(folder), *more]
    assert read(out)[-1]["error"] == "the image has over 4096 bytes"
    assert not [*tmp_path.glob("*.journal")]


@FORMATS
@pytest.mark.usefixtures("_fake")
def test_a_command_without_failures_succeeds_and_takes_each_file_once(
    ending: str, folder: Path, tmp_path: Path
) -> None:
    file = str(folder / "a.png")
    assert main(["classify", file, file, "--out", str(tmp_path / f"out.{ending}")]) == 0
    assert [row["file"] for row in read(tmp_path / f"out.{ending}")] == [file]


@pytest.mark.parametrize(("ending", "form"), [("csv", CSV), ("jsonl", JSONL)])
@pytest.mark.usefixtures("_fake")
def test_a_file_that_was_cut_anywhere_is_continued(
    ending: str, form: Format, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / f"out.{ending}"
    main(["classify", str(folder), "--out", str(out)])
    whole = out.read_bytes()
    rows = read(out)
    for length in range(0, len(whole), 5):
        out.write_bytes(whole[:length])
        with results_file.opened(out, form) as results:
            done = [row for row in rows if row["file"] in results.done]
        encoded = [form.encode(Row.of(row)) for row in done]
        assert out.read_bytes() == form.header + b"".join(encoded)
        with results_file.opened(out, form) as results:
            kept = rows[: len(results.done)]
            assert results.done == {row["file"] for row in kept}
            assert results.failures == sum(row["error"] is not None for row in kept)
            for row in rows[len(kept) :]:
                results.write(Row.of(row))
        assert out.read_bytes() == whole


@pytest.mark.slow
def test_a_killed_command_is_continued_and_each_image_is_classified_once(tmp_path: Path) -> None:
    digits = [*(ROOT / "model_store/digits/held_out").glob("*.png")]
    images = tmp_path / "images"
    images.mkdir()
    for number in range(400):
        (images / f"{number:04}.png").symlink_to(digits[number % len(digits)])
    out = tmp_path / "out.parquet"
    beside = tmp_path / "out.parquet.journal"
    classify = [sys.executable, "-m", "service", "classify", "--model", "digits",
                "--max-batch", "1", "--cpu-threads", "1", "--precision", "float32",
                "--views", "single"]  # fmt: skip
    command = [*classify, str(images), "--out", str(out)]
    process = subprocess.Popen(command, cwd=ROOT)  # noqa: S603 - ourselves
    end = time.monotonic() + 60
    while not beside.exists() or beside.read_bytes().count(b"\n") < 50:
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait(20) == -signal.SIGKILL
    assert not out.exists()
    before = beside.read_bytes().count(b"\n")
    again = subprocess.run(  # noqa: S603 - ourselves
        command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert again.returncode == 0, again.stderr
    assert again.stderr.splitlines()[-1].startswith(f"{400 - before} images, 0 failures")
    rows = read(out)
    assert [Path(row["file"]).name for row in rows] == [f"{n:04}.png" for n in range(400)]
    right = sum(
        row["label"] == digits[number % len(digits)].stem for number, row in enumerate(rows)
    )
    assert right == 400
    assert not beside.exists()


def a_row(**changed: object) -> bytes:
    return json.dumps({**json.loads(JSONL.encode(Row("a.png"))), **changed}).encode() + b"\n"


def a_table(**columns: list[Any]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("ending", "content"),
    [
        *itertools.product(
            ("csv", "jsonl"),
            (b"a,b\n1,2\n", b"precious", b'{"file": 1}\n', b"file,labels\n", b"[1]\n"),
        ),
        ("csv", CSV.header + b"1,2\r\n"),
        *(("jsonl", a_row(**{name: ["a.png"]})) for name in ("file", "error", "model")),
        *(("parquet", content) for content in (
            b"none", a_table(a=[1]), a_table(file=["a"], error=["no"]))),
        ("csv", b"file,label,wnid,index,probability,predictions,error\r\n"),  # without the model
    ],
)  # fmt: skip
def test_a_file_with_something_else_is_left_alone(
    ending: str, content: bytes, tmp_path: Path
) -> None:
    out = tmp_path / f"out.{ending}"
    out.write_bytes(content)
    opened = {
        "csv": results_file.opened(out, CSV),
        "jsonl": results_file.opened(out, JSONL),
        "parquet": results_parquet.opened(out),
    }[ending]
    with pytest.raises(BulkError, match=r"is not a (Parquet )?results file"), opened:
        pass
    assert out.read_bytes() == content


def test_a_journal_that_is_in_the_parquet_file_already_is_not_added_again(tmp_path: Path) -> None:
    """The process was killed between the last two steps."""
    out, journal = tmp_path / "out.parquet", tmp_path / "out.parquet.journal"
    with results_parquet.opened(out) as results:
        results.write(Row("a"))
        results.write(Row("b", error="no"))
        left = journal.read_bytes()
    journal.write_bytes(left)
    with results_parquet.opened(out) as results:
        assert results.done == {"a", "b"}
        results.write(Row("c"))
    assert [row["file"] for row in read(out)] == ["a", "b", "c"]


def test_without_rows_there_is_no_parquet_file(tmp_path: Path) -> None:
    with results_parquet.opened(tmp_path / "out.parquet") as results:
        assert results.done == set()
    assert [*tmp_path.iterdir()] == []


def test_many_rows_are_written_in_groups(tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    with results_parquet.opened(out) as results:
        for number in range(10_000):
            results.file.write(JSONL.encode(Row(str(number))))
    assert pq.ParquetFile(out).num_row_groups == 2
    assert [row["file"] for row in read(out)] == [str(number) for number in range(10_000)]


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    with out.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BulkError, match="by another process"), results_file.opened(out, CSV):
            pass


@contextmanager
def full_disk(nbytes: int) -> Iterator[None]:
    """No file may grow over so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@FORMATS
@pytest.mark.usefixtures("_fake")
def test_a_full_disk_is_an_error_and_the_command_continues_when_there_is_room(
    ending: str, folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / f"out.{ending}"
    written = out.with_name("out.parquet.journal") if ending == "parquet" else out
    command = ["classify", str(folder), "--out", str(out)]
    with full_disk(700):
        assert refused(command, capsys) == f"{written} cannot be written: File too large"
    assert written.stat().st_size == 700
    assert main(command) == 1  # there is a bad one
    assert [row["file"] for row in read(out)] == names(folder)


def test_a_disk_without_room_for_the_whole_file_is_an_error(tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    with results_parquet.opened(out) as results:
        results.write(Row("a"))
    with (
        pytest.raises(BulkError, match=r"out\.parquet cannot be written"),
        full_disk(1000),
        results_parquet.opened(out) as results,
    ):
        results.write(Row("b"))
    with results_parquet.opened(out):
        pass
    assert [row["file"] for row in read(out)] == ["a", "b"]


def refused(arguments: list[str], capsys: Captured) -> str:
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err.removeprefix("googlenet-service: ").rstrip("\n")


def test_impossible_arguments_are_an_error_with_a_sentence(
    folder: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["classify", str(folder), "--out"]
    assert refused([*command, "a.txt"], capsys) == (
        "a.txt: name a file that ends with .parquet, .csv, .jsonl"
    )
    gone = tmp_path / "gone/a.csv"
    assert refused([*command, str(gone)], capsys) == (
        f"{gone} cannot be written: No such file or directory"
    )
    assert refused(["classify", str(gone)], capsys) == f"there is no file {gone}"
    empty = str(folder / "folder.png")
    assert refused(["classify", empty], capsys) == "no images found"
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    sentence = refused([*command, str(tmp_path / "a.parquet")], capsys)
    assert sentence.startswith("Parquet needs pyarrow: pip install 'googlenet-service[bulk]'")
    monkeypatch.setitem(sys.modules, "service.client", None)
    sentence = refused(["classify", str(folder), "--url", "http://nowhere.invalid"], capsys)
    assert sentence == "--url needs httpx2: pip install 'googlenet-service[client]'"


@pytest.mark.usefixtures("_fake")
def test_a_terminal_shows_the_progress(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = io.StringIO()
    terminal = rich.console.Console(file=output, force_terminal=True, width=100)
    monkeypatch.setattr("service.cli.console.terminal", lambda **_: terminal)
    main(["classify", str(folder), "--out", str(tmp_path / "out.csv")])
    assert "4/4" in output.getvalue()


@pytest.mark.usefixtures("_fake")
def test_labels_are_printed_in_order_and_skipped_files_named_beside_them(
    folder: Path, phone: Path, capsys: Captured
) -> None:
    assert main(["classify", str(folder), "--json", "--top-k", "1"]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert [row["file"] for row in rows] == names(folder)
    assert rows[2] == {"file": f"{folder}/b/broken.png", "error": BROKEN}
    assert main(["classify", str(folder)]) == 1
    assert "z.png" in capsys.readouterr().out
    assert main(["classify", str(phone), "--json"]) == 0
    printed = capsys.readouterr()
    assert [row["file"] for row in json.loads(printed.out)] == [f"{phone}/{name}" for name in FOUND]
    assert printed.err == f"{left_out(phone)}\n"
    assert main(["classify", str(phone / "b"), "--json"]) == 0
    assert capsys.readouterr().err == ""


def test_a_device_that_fails_ends_the_command_and_the_image_is_not_done(
    folder: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: Batch[PreparedImage]) -> list[Probabilities]:
        raise InferenceFailed("no device")

    monkeypatch.setattr(factory, "create_served_model", faked(fails))
    out = tmp_path / "out.csv"
    assert "the device failed" in refused(["classify", str(folder), "--out", str(out)], capsys)
    assert not out.exists()


# Files that are not images.


JPEG_XL = b"\xff\x0a" + bytes(100)
FOUND = ["a.jfif", "b", "c.mpo", "below/d.tmp"]


@pytest.fixture
def phone(tmp_path: Path) -> Path:
    """What a phone and a computer leave in a folder: most is no image by its suffix."""
    root = tmp_path / "phone"
    (root / "below").mkdir(parents=True)
    for name, colour in zip(FOUND, ("red", "lime", "blue", "red"), strict=True):
        (root / name).write_bytes(plain(colour))
    for name in ("IMG_1.JXL", "IMG_2.jxl", "below/IMG_3"):
        (root / name).write_bytes(JPEG_XL)
    (root / "notes.txt").write_text("BMW and other cars, in a text that begins as a BMP does")
    return root


def left_out(root: Path) -> str:
    return (
        f"skipped, not images of a supported format: 2 .jxl ({root}/IMG_1.JXL),"
        f" 1 .txt ({root}/notes.txt), 1 without a suffix ({root}/below/IMG_3)"
    )


@pytest.mark.parametrize(
    ("ending", "archive"),
    [("csv", ""), ("jsonl", "zip"), ("parquet", "tar"), ("parquet", "tar.gz")],
)
@pytest.mark.usefixtures("_fake")
def test_images_are_found_by_their_bytes_and_the_rest_is_counted_by_kind(
    ending: str, archive: str, phone: Path, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / f"out.{ending}"
    root = archived(phone, archive)
    command = ["classify", str(root), "--out", str(out)]
    assert main(command) == 0
    rows = read(out)
    assert [row["file"] for row in rows] == [f"{root}/{name}" for name in FOUND]
    assert [row["label"] for row in rows] == ["red", "green", "blue", "red"]
    printed = capsys.readouterr().err
    assert printed.startswith("4 images, 0 failures, ")
    assert printed.endswith(f" images a second; {left_out(root)}\n")
    assert main(command) == 0
    assert capsys.readouterr().err.endswith(f"; 4 were done before; {left_out(root)}\n")


def packed(path: Path, members: Sequence[tuple[str, bytes]]) -> None:
    """Make a ZIP or a tar of these members and a folder, as the name ends."""
    if path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.mkdir("folder.png")
            for name, data in members:
                archive.writestr(name, data)
    else:
        tarred(path, "w" if path.suffix == ".tar" else "w:gz", members)


def archived(root: Path, ending: str) -> Path:
    """Make an archive of a folder, in the order in which folders are walked."""
    if not ending:
        return root
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    path = root.with_suffix(f".{ending}")
    ordered = sorted(names, key=lambda name: "/" in name)
    packed(path, [(name, (root / name).read_bytes()) for name in ordered])
    return path


@FORMATS
def test_without_an_image_no_file_of_results_is_left(
    ending: str, phone: Path, tmp_path: Path, capsys: Captured
) -> None:
    for name in FOUND:
        (phone / name).unlink()
    out = tmp_path / f"out.{ending}"
    sentence = refused(["classify", str(phone), "--out", str(out)], capsys)
    assert sentence == f"no images found; {left_out(phone)}"
    assert [*tmp_path.iterdir()] == [phone]


@FORMATS
def test_an_empty_file_that_was_there_before_is_not_deleted(
    ending: str, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / ("out.parquet.journal" if ending == "parquet" else f"out.{ending}")
    out.touch()
    empty = tmp_path / "empty"
    empty.mkdir()
    command = ["classify", str(empty), "--out", str(tmp_path / f"out.{ending}")]
    assert refused(command, capsys) == "no images found"
    assert out.exists()


def test_a_file_that_its_writer_deleted_meanwhile_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process had no rows, and deleted it after this one had opened it."""
    out = tmp_path / "out.csv"
    flock = fcntl.flock

    def late(file: Any, operation: int) -> None:
        flock(file, operation)
        out.unlink()
        out.touch()

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(BulkError, match="by another process"), results_file.opened(out, CSV):
        pass


# Results of another model, version or views.


@pytest.fixture
def versions(tmp_path: Path) -> list[Path]:
    """Two stores, with another version of a model each."""
    stores = [tmp_path / f"store_{number}" for number in (1, 2)]
    text = (ROOT / "model_store/digits" / MANIFEST).read_text("utf-8")
    for number, folder in enumerate(stores, 1):
        (folder / "mine").mkdir(parents=True)
        described = text.replace('version = "1"', f'version = "{number}"')
        (folder / "mine" / MANIFEST).write_text(described, "utf-8")
    return stores


@FORMATS
@pytest.mark.parametrize("is_archive", [False, True])
@pytest.mark.usefixtures("_fake")
def test_results_of_another_model_or_version_or_views_are_left_alone(  # noqa: PLR0913 - fixtures
    ending: str, folder: Path, versions: list[Path], tmp_path: Path, capsys: Captured, *,
    is_archive: bool,
) -> None:  # fmt: skip
    images, out = folder, tmp_path / f"out.{ending}"
    if is_archive:
        images = tmp_path / "images.tar"
        tarred(images, "w", [("a.png", plain("red")), ("broken.png", plain("red")[:-30])])
    command = ["classify", str(images), "--out", str(out)]
    mine = ["--model", "mine", "--model-store", str(versions[0]), "--views", "single"]
    assert main([*command, *mine]) == 1
    before = out.read_bytes()
    capsys.readouterr()
    for other, wanted in {
        ("--views", "ten"): "model mine, version 1, views ten",
        ("--model-store", str(versions[1])): "model mine, version 2, views single",
        ("--model", "digits"): "model digits, version 1, views single",
        ("--model", "mine,digits"): "model mine,digits, version 1,1, views single",
        ("--engine", "ray", "--views", "ten"): "model mine, version 1, views ten",
    }.items():
        assert refused([*command, *mine, *other], capsys) == (
            f"{out} has results by model mine, version 1, views single;"
            f" name another file for those by {wanted}"
        )
        assert out.read_bytes() == before
    assert main([*command, *mine]) == 1  # there is a bad one
    assert out.read_bytes() == before


@pytest.mark.usefixtures("_fake")
def test_a_journal_of_another_model_is_left_alone_as_its_file_is(
    folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "out.parquet"
    journal = tmp_path / "out.parquet.journal"
    kept = JSONL.encode(Row("a.png", [], None, results_file.Origin("googlenet", "0", "ten")))
    journal.write_bytes(kept)
    sentence = refused(["classify", str(folder), "--out", str(out)], capsys)
    assert sentence.startswith(f"{out} has results by model googlenet, version 0, views ten; name")
    assert journal.read_bytes() == kept
    assert not out.exists()


@FORMATS
@pytest.mark.usefixtures("_fake")
def test_a_file_with_failures_only_may_be_continued_by_any_model(
    ending: str, folder: Path, tmp_path: Path
) -> None:
    """An image that is broken is so for all of them."""
    out = tmp_path / f"out.{ending}"
    broken, good = str(folder / "b/broken.png"), str(folder / "a.png")
    assert main(["classify", broken, "--out", str(out), "--views", "single"]) == 1
    assert main(["classify", broken, good, "--out", str(out), "--views", "ten"]) == 1
    assert [row["views"] for row in read(out)] == [None, "ten"]


# Archives.


def images_of(path: Path) -> dict[str, str | int]:
    """Read all images there: their sizes, or their errors."""
    results: dict[str, str | int] = {}
    for source in image_source.images([path], max_bytes=MAX, is_new=lambda _: True):
        name = source.name.removeprefix(f"{path}").lstrip("/")
        assert name not in results
        try:
            results[name] = len(source.read())
        except ServiceError as error:
            results[name] = str(error)
    return results


def tarred(path: Path, mode: str, members: Sequence[tuple[str, bytes]]) -> None:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]  # a mode
        folder = tarfile.TarInfo("folder.png")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


MEMBERS = [
    ("a/red.png", plain("red")), ("blue.PNG", plain("blue")), ("huge.png", bytes(MAX + 1)),
    ("just.png", bytes(MAX)), ("notes.txt", b"none"), ("__MACOSX/red.png", b"none"),
    (".red.png", b"none"), ("empty.png", b""), (150 * "long/" + "é.png", plain("lime")),
]  # fmt: skip
READ = {
    "a/red.png": len(plain("red")), "blue.PNG": len(plain("blue")), "just.png": MAX,
    "huge.png": f"the image has over {MAX} bytes", "empty.png": 0,
    150 * "long/" + "é.png": len(plain("lime")),
}  # fmt: skip


@pytest.mark.parametrize(
    ("ending", "content"),
    [
        *((ending, ending) for ending in ("tar", "tar.gz", "tgz", "zip", "ZIP")),
        ("tar", "tar.gz"), ("tar.gz", "tar"), ("tgz", "tar"),  # whatever the name says
    ],
)  # fmt: skip
def test_an_archive_is_read_without_being_unpacked(
    ending: str, content: str, tmp_path: Path
) -> None:
    path = tmp_path / f"photos.{ending}"
    packed(tmp_path / f"photos.{content}", MEMBERS)
    (tmp_path / f"photos.{content}").rename(path)
    assert images_of(path) == READ
    assert [*tmp_path.iterdir()] == [path]
    assert image_source.count([path]) is None


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_may_come_through_a_pipe(mode: str, tmp_path: Path) -> None:
    path, pipe = tmp_path / "whole.tar", tmp_path / "pipe.tar"
    tarred(path, mode, MEMBERS)
    os.mkfifo(pipe)
    writing = threading.Thread(target=lambda: pipe.write_bytes(path.read_bytes()))
    writing.start()
    assert images_of(pipe) == READ
    writing.join()


def test_members_that_are_not_images_are_left_out_unread(tmp_path: Path) -> None:
    """Whatever their size, and though they are encrypted, packed otherwise, or links."""
    packed_, path = tmp_path / "photos.zip", tmp_path / "photos.tar"
    with zipfile.ZipFile(packed_, "w") as archive:
        archive.writestr("film.mp4", bytes(MAX * 10), zipfile.ZIP_DEFLATED)
        archive.writestr("odd", plain("red"), zipfile.ZIP_LZMA)
        archive.writestr("changed", plain("red"))
        archive.writestr("large", plain("red") + bytes(MAX))
        archive.writestr("red", plain("red"))
    data = packed_.read_bytes()
    end = data.index(b"changed") + len(b"changed")
    packed_.write_bytes(data[: end - 37] + b"PK\3\5" + data[end - 33 :])
    with tarfile.open(path, "w") as archive_:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "red"
        archive_.addfile(link)
        for name, content in {
            "film.mp4": bytes(MAX * 10), "large": plain("red") + bytes(MAX),
        }.items():  # fmt: skip
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive_.addfile(member, io.BytesIO(content))
    kinds: list[tuple[str, str]] = []
    sources = image_source.images(
        [packed_, path], max_bytes=MAX, is_new=lambda _: True,
        leave_out=lambda *skipped: kinds.append(skipped),
    )  # fmt: skip
    results: dict[str, int | str] = {}
    for source in sources:
        name = source.name.removeprefix(f"{tmp_path}/")
        try:
            results[name] = len(source.read())
        except ServiceError as error:
            results[name] = str(error)
    over = f"the image has over {MAX} bytes"
    red = {"photos.zip/red": len(plain("red"))}
    assert results == {"photos.zip/large": over, **red, "photos.tar/large": over}
    assert kinds == [
        (f"{packed_}/film.mp4", ".mp4"),
        (f"{packed_}/odd", "without a suffix"),
        (f"{packed_}/changed", "without a suffix"),
        (f"{path}/link.png", "link or special file"),
        (f"{path}/film.mp4", ".mp4"),
    ]


@pytest.mark.parametrize("ending", ["tar", "zip"])
def test_members_that_are_done_are_skipped(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"photos.{ending}"
    packed(path, MEMBERS)
    left = image_source.images([path], max_bytes=MAX, is_new=lambda name: "blue" in name)
    assert [source.name for source in left] == [f"{path}/blue.PNG"]


def test_unreadable_members_of_a_zip_fail_alone(tmp_path: Path) -> None:
    path = tmp_path / "photos.zip"
    noise = random.Random(0).randbytes(1000)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("lzma.png", plain("red"), zipfile.ZIP_LZMA)
        archive.writestr("liar.png", bytes(50_000_000), zipfile.ZIP_DEFLATED)
        archive.writestr("changed.png", noise)
        archive.writestr("good.png", plain("blue"))
    data = path.read_bytes().replace(noise, noise[:500] + b"!" + noise[501:])
    sizes = struct.pack("<I", 50_000_000)
    assert data.count(sizes) == 2
    path.write_bytes(data.replace(sizes, struct.pack("<I", 10)))  # it states 10 bytes
    broken = "it is encrypted or broken in its archive"
    assert images_of(path) == {
        "lzma.png": "its compression is not supported",
        "liar.png": broken,
        "changed.png": broken,
        "good.png": len(plain("blue")),
    }


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "zip"])
def test_a_file_that_is_no_archive_is_an_error(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"photos.{ending}"
    path.write_bytes(b"none" * 1000)
    assert images_of(path) == {"": "the archive is broken or cut short after 0 images"}
    assert [*image_source.images([path], max_bytes=MAX, is_new=lambda _: False)] == []


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_members_before_the_cut_of_an_archive_are_read(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"photos.{ending}"
    chance = random.Random(0)
    packed(path, [(f"{n}.png", chance.randbytes(5000)) for n in range(20)])
    path.write_bytes(path.read_bytes()[:50_000])
    results = images_of(path)
    assert "the archive is broken or cut short" in str(results.pop(""))
    assert 5 < len(results) < 15
    assert {*results.values()} == {5000}


def test_a_tar_that_describes_a_member_for_ever_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "photos.tar.gz"
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 7 << 30
    with gzip.open(path, "wb") as file:
        file.write(header.tobuf() + bytes(100_000_000))
    tracemalloc.start()
    try:
        assert "the archive is broken" in str(images_of(path)[""])
        assert tracemalloc.get_traced_memory()[1] < 60_000_000
    finally:
        tracemalloc.stop()


def test_unreadable_files_are_errors(tmp_path: Path) -> None:
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    assert images_of(tmp_path) == {}
    assert "cannot be read: No such file" in str(images_of(tmp_path / "gone.png")[""])
    assert "not a regular file" in str(images_of(tmp_path / "pipe.png")[""])
    (tmp_path / "huge").write_bytes(bytes(MAX + 1))
    assert images_of(tmp_path / "huge") == {"": f"the image has over {MAX} bytes"}


def test_names_that_are_not_utf_8_are_escaped(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(b"1")
    assert images_of(tmp_path) == {"\\xff.png": 1}


def test_files_and_folders_are_counted(folder: Path) -> None:
    assert image_source.count([folder, folder / "readme.txt"]) == 5


# Many images at a time.


def test_results_are_in_order_and_no_more_tasks_run_than_allowed() -> None:
    chance = random.Random(0)
    running, most = 0, 0
    done: list[str] = []

    async def work(source: Source) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(chance.randrange(20)):
            await asyncio.sleep(0)
        running -= 1
        return source.name

    every = [Source(str(number), bytes, held=number * 100_000) for number in range(200)]
    asyncio.run(ordered_tasks.run(iter(every), work, done.append, lambda: 7))
    assert done == [source.name for source in every]
    assert most == 7


def test_results_that_wait_for_an_earlier_one_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordered_tasks, "HELD", 10)
    begun: list[str] = []
    done: list[str] = []

    async def main() -> None:
        first = asyncio.Event()

        async def work(source: Source) -> str:
            begun.append(source.name)
            if source.name == "0":
                await first.wait()
            return source.name

        every = (Source(str(number), bytes) for number in range(100))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(ordered_tasks.run(every, work, done.append, lambda: 3))
            await asyncio.sleep(0.1)
            assert (len(begun), done) == (10, [])
            first.set()

    asyncio.run(main())
    assert done == [str(number) for number in range(100)]


def test_sources_that_come_slower_than_they_are_worked_on_are_all_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each is done before the next one comes; the results that may wait are fewer than all."""
    monkeypatch.setattr(ordered_tasks, "HELD", 10)
    monkeypatch.setattr(ordered_tasks, "_CHUNK", 1)
    done: list[str] = []
    put = threading.Event()

    def slow() -> Iterator[Source]:
        for number in range(30):
            yield Source(str(number), bytes)
            assert put.wait(20)  # which it is while others are still to come
            put.clear()

    async def work(source: Source) -> str:
        return source.name

    def keep(name: str) -> None:
        done.append(name)
        put.set()

    async def main() -> None:
        async with asyncio.timeout(30):
            await ordered_tasks.run(slow(), work, keep, lambda: 3)

    asyncio.run(main())
    assert done == [str(number) for number in range(30)]


def test_an_error_ends_all_tasks_and_earlier_results_are_kept() -> None:
    done: list[str] = []

    async def work(source: Source) -> str:
        if source.name == "3":
            raise InferenceFailed("no")
        return source.name

    every = (Source(str(number), bytes) for number in itertools.count())
    with pytest.raises(InferenceFailed, match="no"):
        asyncio.run(ordered_tasks.run(every, work, done.append, lambda: 5))
    assert done == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("views", "decoding", "nbytes", "room"),
    [("single", 2, 10**9, 50), ("ten", 2, 10**9, 7), ("paper", 2, 10**9, 3), ("single", 2, 1, 1),
     ("single", 2, 10 * 150_528, 10)],
)  # fmt: skip
def test_the_concurrency_fills_the_batches_and_the_memory(
    views: str, decoding: int, nbytes: int, room: int
) -> None:
    async def main() -> int:
        async with served_model(lambda *_: fake_backend(), max_queue_bytes=nbytes) as model:
            return (await model.ready()).concurrency(views, decoding)

    assert asyncio.run(main()) == room


def test_the_window_grows_with_responses_and_halves_once_for_simultaneous_refusals() -> None:
    window = AimdWindow(window=8.0)
    assert window.answered().window == 8.125
    assert AimdWindow(window=MOST).answered().most == MOST
    slower = window.refused(now=10.0, seconds=2.0)
    assert (slower.most, slower.quiet_until) == (4, 12.0)
    assert slower.refused(now=11.9, seconds=5.0) == slower
    assert slower.refused(now=12.0, seconds=1.0).most == 2
    assert AimdWindow(window=1.0).refused(now=0.0, seconds=1.0).most == 1


# With a service.


def test_an_overloaded_service_classifies_all_images_after_retries(
    tmp_path: Path, capsys: Captured
) -> None:
    """It has memory for three images that wait; all of these have to."""
    images = tmp_path / "images"
    images.mkdir()
    for number in range(60):
        colour = [*LABELS][number % 3]
        (images / f"{number:02}.png").write_bytes(plain(colour))
    (images / "90.png").write_bytes(b"none")
    (images / "91.png").write_bytes(b"")
    (images / "92.png").write_bytes(bytes(21 * 2**20))
    out = tmp_path / "out.csv"

    def slow(batch: Batch[PreparedImage]) -> list[Probabilities]:
        time.sleep(0.01)
        return mean_colour(batch)

    with live(fake_backend(slow), max_queue_bytes=500_000) as url:
        command = ["classify", str(images), "--url", url, "--out", str(out)]
        assert main([*command, "--views", "single", "--top-k", "2"]) == 1
        metrics = httpx2.get(f"{url}/metrics").text
    assert 'googlenet_rejected_total{priority="interactive",reason="overloaded"}' in metrics
    rows = read(out)
    assert len(rows) == 63
    assert [row["label"] for row in rows[:60]] == [*LABELS.values()] * 20
    assert {len(row["predictions"]) for row in rows[:60]} == {2}
    assert all(row["error"] for row in rows[60:])
    assert capsys.readouterr().err.startswith("63 images, 3 failures")


def nowhere() -> str:
    """Make an address at which nothing listens."""
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        return f"http://{HOST}:{taken.getsockname()[1]}"


def test_a_refused_connection_is_printed_at_once_and_fails_after_the_wait(
    folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    out, url = tmp_path / "out.csv", nowhere()
    command = ["classify", str(folder), "--url", url, "--out", str(out)]
    assert parser.build().parse_args(command).wait == 10
    assert main([*command, "--wait", "0.4"]) == 1
    first, last = capsys.readouterr().err.splitlines()
    reason = f"cannot connect to {url}: "
    assert first.startswith(reason)
    assert first.endswith("; retrying for up to 0.4 s")
    assert last.startswith(f"googlenet-service: {reason}")
    assert last.endswith("; gave up after 0.4 s (--wait SECONDS waits longer)")
    assert not out.exists()


def test_a_service_that_accepts_and_does_not_answer_fails_after_the_wait(
    folder: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_runner, "SILENCE", 0.05)
    with misbehaving(silent) as (url, _):
        assert main(["classify", str(folder), "--url", url, "--wait", "0.3"]) == 1
    first, last = capsys.readouterr().err.splitlines()
    assert first == f"{url} has not answered yet; waiting for up to 0.3 s"
    assert last == (
        f"googlenet-service: {url} did not answer in time; gave up after 0.3 s"
        " (--wait SECONDS waits longer)"
    )


def test_each_outage_of_a_service_is_printed_once() -> None:
    gone, busy = Unreachable("it does not answer"), Unavailable("busy", code="overloaded")
    loading = Unavailable("the model is loading", code="not_ready")
    printed: list[str] = []
    outage = remote_runner._Outage(10, printed.append)  # noqa: SLF001 - needs no service this way
    for error in (busy, gone, loading, gone):
        outage.retried(error)
    outage.over()
    for error in (busy, loading, gone):
        outage.retried(error)
    assert printed == [
        "it does not answer; retrying for up to 10 s",
        "the model is loading; retrying for up to 600 s",
    ]


@pytest.mark.parametrize("wait", ["0", "-1", "soon"])
def test_an_invalid_wait_is_an_error(wait: str, capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        main(["classify", "a.png", "--url", nowhere(), f"--wait={wait}"])
    assert f"argument --wait: '{wait}' is not a number above 0" in capsys.readouterr().err


def test_images_too_slow_for_the_background_share_are_sent_with_normal_priority(
    tmp_path: Path,
) -> None:
    images, out = tmp_path / "images", tmp_path / "out.csv"
    images.mkdir()
    for number, colour in enumerate(LABELS):
        (images / f"{number}.png").write_bytes(plain(colour))
    with live(fake_backend(seconds_per_row=3.0, sizes=(1,))) as url:  # of ten that it has
        command = ["classify", str(images), "--url", url, "--out", str(out)]
        assert main([*command, "--views", "single"]) == 0
    assert [row["label"] for row in read(out)] == [*LABELS.values()]


def test_a_refusal_by_the_service_ends_the_command(folder: Path, capsys: Captured) -> None:
    with live(api_key_hashes=f"web:{'0' * 64}") as url:
        sentence = refused(["classify", str(folder), "--url", url, "--key", "wrong"], capsys)
    assert sentence.startswith(f"{folder}/")
    assert "send your API key" in sentence


@FORMATS
def test_a_service_may_load_another_version_and_its_results_say_so(
    ending: str, folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    out, backend = tmp_path / f"out.{ending}", fake_backend()
    renamed(backend, "fake", "1")
    with live(backend) as url:
        files = [str(folder / name) for name in ("a.png", "z.png")]
        command = ["--url", url, "--out", str(out)]
        assert main(["classify", files[0], *command]) == 0
        renamed(backend, "fake", "2")
        assert main(["classify", *files, *command, "--model", "fake"]) == 0
        made = [tuple(row[name] for name in results_file.ORIGIN) for row in read(out)]
        assert made == [("fake", "1", "single"), ("fake", "2", "single")]
        capsys.readouterr()
        assert refused(["classify", *files, *command, "--model", "fake@2"], capsys) == (
            f"{out} has results by model fake, version 1, views single;"
            " name another file for those by model fake@2"
        )
        version_2 = ["--url", url, "--out", str(tmp_path / f"2.{ending}"), "--model", "fake@2"]
        for file in files:
            assert main(["classify", file, *version_2]) == 0
    assert [row["version"] for row in read(tmp_path / f"2.{ending}")] == ["2", "2"]


@FORMATS
def test_a_service_with_another_model_or_views_ends_the_command(
    ending: str, folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    out, backend = tmp_path / f"out.{ending}", fake_backend()
    with live(backend) as url:
        command = ["--url", url, "--out", str(out)]
        first = ["classify", str(folder / "a.png"), *command]
        both = ["classify", str(folder / "a.png"), str(folder / "z.png"), *command]
        assert main(first) == 0
        before = out.read_bytes()
        capsys.readouterr()
        has = f"{out} has results by model fake0, version 1, views single; name another file for"
        assert refused([*first, "--views", "ten"], capsys) == f"{has} those by views ten"
        assert refused([*first, "--model", "other"], capsys) == f"{has} those by model other"
        renamed(backend, "other", "1")
        assert refused(both, capsys) == f"{has} those by model other, views single"
        assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--url", "ftp://host"], r"cannot send a request to 'ftp://host': ((?!gave up).)*"),
        (["--url", f"http://{HOST}", "--key", "clé"],
         "an API key is printable ASCII without spaces around it"),
    ],
)  # fmt: skip
def test_an_invalid_address_or_key_is_an_error_at_once(
    options: list[str], sentence: str, folder: Path, capsys: Captured
) -> None:
    assert re.fullmatch(sentence, refused(["classify", str(folder), *options], capsys))


def test_a_model_that_is_replaced_before_it_is_loaded_ends_the_command(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    fake = served_model(lambda *_: fake_backend())
    monkeypatch.setattr(factory, "create_served_model", lambda _: fake)
    out = tmp_path / "out.csv"
    command = ["classify", str(folder / "a.png"), "--model", "digits", "--out", str(out)]
    assert refused(command, capsys) == (
        f"{out} is for results by model digits, version 1, views adaptive; these are by"
        " model fake0, version 1, views adaptive"
    )
    assert not out.exists()


# With the real weights.


@pytest.mark.slow
def test_a_hundred_photos_are_classified_as_by_evaluate_and_the_service(
    shared: Path, real_store: Store, served: Served, tmp_path: Path
) -> None:
    photos = shared / "photos"
    out = tmp_path / "out.jsonl"
    files = [str(path) for path in sorted(photos.glob("*.JPEG"))]
    packed = tmp_path / "photos.tar"
    with tarfile.open(packed, "w") as archive:
        for file in files:
            archive.add(file, Path(file).name)
    options = ["--model", "bvlc_googlenet", "--model-store", str(real_store.root),
               "--views", "single", "--precision", "float32",
               "--max-batch", "8", "--cpu-threads", "1"]  # fmt: skip
    assert main(["classify", str(packed), *options, "--out", str(out)]) == 0
    rows = read(out)
    assert [row["file"] for row in rows] == [f"{packed}/{Path(file).name}" for file in files]
    assert sum(row["wnid"] == Path(row["file"]).name[:9] for row in rows) == 79
    with Client(f"http://{HOST}:{served.port}", timeout=120) as client:
        answers = client.classify_all(files[:30], views="single")
    best = [ranking.best.label for ranking in answers if isinstance(ranking, Ranking)]
    assert best == [row["label"] for row in rows[:30]]

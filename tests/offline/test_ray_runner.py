"""`classify --engine ray`: a cluster does what one machine does, though a node of it is lost."""

import contextlib
import json
import os
import secrets
import signal
import socket
import sys
import tarfile
import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from conftest import ROOT, mean_colour
from test_bulk import BROKEN, Captured, faked, folder, names, refused

from service.__main__ import main
from service.engine.prepared_image import PreparedImage
from service.errors import BulkError, InferenceFailed
from service.models.ensemble import Probabilities
from service.offline.bulk import ray_actor, ray_runner, results_file
from service.offline.bulk.ray_actor import Actor, Task
from service.offline.bulk.ray_runner import Resources
from service.offline.bulk.results_file import Origin, Row
from service.scheduling.types import Batch
from service.serving import factory
from service.settings import Settings

__all__ = ["folder"]  # a fixture

pytestmark = pytest.mark.usefixtures("no_settings")

DIGITS = (
    *("--model", "digits", "--views", "single", "--precision", "float32", "--max-batch", "1"),
    *("--device", "cpu"),
)
ORIGIN = Origin("googlenet", "1", "single")  # by default, with these views
IMAGES = 300
BEFORE = 40  # of them were done by a job that was ended
BATCH = 8
MEMORY = 80 * 2**20  # bytes of a node's object store; Ray takes hardly fewer
PATIENCE = 120  # seconds


# What an actor does, in this process.


@contextlib.contextmanager
def acting(
    paths: list[Path], done: Collection[str] = (), origin: Origin = ORIGIN
) -> Iterator[Actor]:
    settings = Settings(views="single")
    actor = Actor(Task(settings, origin, 2, paths, done, batch=3))
    try:
        yield actor
    finally:
        runner = actor._runner  # noqa: SLF001 - Ray ends the process instead
        runner.run(actor._served_model.__aexit__())  # noqa: SLF001 - the same
        runner.close()


def table(*paths: Path) -> Any:
    """Make a portion, as an actor gets it; names are not where the files are."""
    files = [os.fsencode(path) for path in paths]
    return pa.table({"file": [files], "name": [[f"as given/{path.name}" for path in paths]]})


def results(actor: Actor, *paths: Path) -> list[list[Row]]:
    """Have it work; gives the rows of each of its tables."""
    return [[*map(ray_actor.row, made.to_pylist())] for made in actor(table(*paths))]


def test_an_actor_classifies_files_and_archives_and_its_results_have_what_it_skipped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factory, "create_served_model", faked(mean_colour))
    packed, texts = tmp_path / "packed.tar", tmp_path / "texts.tar"
    names_of = {
        packed: ("a.png", "a.png", "b/broken.png", "z.png", "readme.txt"), texts: ("readme.txt",),
    }  # fmt: skip
    for path, members in names_of.items():
        with tarfile.open(path, "w") as archive:
            for name in members:
                archive.add((folder / name).resolve(), name)
    with acting([folder, packed], {"as given/packed.tar/z.png"}) as actor:
        files = [Path(name) for name in names(folder)]
        first, second = results(actor, *files)
        [members] = actor(table(packed))
        [nothing] = actor(table(texts))
    rows = first + second
    assert [row.file for row in rows] == [f"as given/{path.name}" for path in files]
    assert [row.error for row in rows] == [None, None, BROKEN, None]
    assert [row.origin for row in rows] == [ORIGIN, ORIGIN, None, ORIGIN]
    assert [prediction["label"] for prediction in rows[3].predictions] == ["green", "red"]
    *images, skipped = members.to_pylist()
    assert [(ray_actor.row(row).file, ray_actor.row(row).error) for row in images] == [
        ("as given/packed.tar/a.png", None),
        ("as given/packed.tar/b/broken.png", BROKEN),
    ]
    assert (skipped["left_out"], skipped["kind"], skipped["record"]) == (
        *("as given/packed.tar/readme.txt", ".txt"),
        b"",
    )
    assert [row["left_out"] for row in nothing.to_pylist()] == ["as given/texts.tar/readme.txt"]


def test_the_errors_of_an_actor_are_in_its_results(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: Batch[PreparedImage]) -> list[Probabilities]:
        raise InferenceFailed("no device")

    monkeypatch.setattr(factory, "create_served_model", faked(fails))
    host = socket.gethostname()
    broken, whole = folder / "b/broken.png", folder / "a.png"
    with acting([folder]) as actor:
        done, failed = actor(table(broken, whole))  # the first never comes to the device
        assert ray_actor.row(*done.to_pylist()).error == BROKEN
        with pytest.raises(BulkError, match=f"^{host}: the device failed"):
            ray_actor.row(*failed.to_pylist())
        with pytest.raises(BulkError, match="the device failed"):
            results(actor, broken)
    with (
        acting([folder, folder / "gone"]) as actor,
        pytest.raises(BulkError, match=f"^{host}: there is no file {folder / 'gone'}"),
    ):
        results(actor, whole)


def test_an_actor_whose_store_has_another_model_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factory, "create_served_model", faked(mean_colour))
    other = Origin("googlenet", "2", "single")
    told = f"^{socket.gethostname()}: the store here has {ORIGIN}, not {other}$"
    with acting([folder], origin=other) as actor, pytest.raises(BulkError, match=told):
        results(actor, folder / "a.png")


# What is decided.


def test_files_go_by_so_many_and_archives_alone() -> None:
    files = ["a", "b.zip", "c", "d", "e", "f.TAR.GZ", "g"]
    wanted = [["b.zip"], ["a", "c"], ["f.TAR.GZ"], ["d", "e"], ["g"]]
    assert sorted(ray_runner.batches(files, 2)) == sorted(wanted)
    assert [*ray_runner.batches(["a", "b"], 2)] == [["a", "b"]]


def test_a_file_is_done_once_and_an_archive_is_always_looked_into(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.png", "b.tar", "c.png", "a.png", "b.tar")]
    done = {str(path) for path in paths[1:3]}
    assert [*ray_runner.files(paths, done)] == [str(path) for path in paths[:2]]


@pytest.mark.parametrize(
    ("device", "cores", "nodes", "wanted"),
    [
        ("auto", 0, [{"CPU": 8.0}, {"CPU": 4.0}, {"memory": 1.0}], Resources(4, 0)),
        ("auto", 2, [{"CPU": 8.0}], Resources(2, 0)),
        ("auto", 0, [{"CPU": 2.0}, {"CPU": 16.0, "GPU": 4.0}], Resources(4, 1)),
        ("auto", 0, [{"CPU": 2.0}, {"GPU": 1.0}], Resources(2, 0)),
        ("auto", 4, [{"CPU": 8.0}, {"CPU": 2.0, "GPU": 1.0}], Resources(4, 0)),
        ("cuda", 0, [{"CPU": 2.0}, {"CPU": 1.0, "GPU": 2.0}], Resources(1, 1)),
        ("cuda:1", 0, [{"CPU": 1.0, "GPU": 2.0}, {"CPU": 6.0, "GPU": 2.0}], Resources(3, 1)),
        ("cpu", 0, [{"CPU": 2.0}, {"CPU": 16.0, "GPU": 4.0}], Resources(2, 0)),
    ],
)
def test_an_actor_has_as_much_as_fits_on_every_node(
    device: str, cores: int, nodes: list[dict[str, float]], wanted: Resources
) -> None:
    assert ray_runner.actor_resources(Settings(device=device, cpu_threads=cores), nodes) == wanted


@pytest.mark.parametrize(
    ("device", "cores", "nodes", "wants", "has"),
    [
        ("auto", 9, [{"CPU": 2.0}, {"CPU": 8.0}, {"GPU": 2.0}], (9, 0), (8, 0)),
        ("auto", 0, [{"memory": 1.0}], (1, 0), (0, 0)),
        ("cpu", 0, [], (1, 0), (0, 0)),
        ("cuda", 0, [{"CPU": 2.0}, {"CPU": 8.0}], (1, 1), (8, 0)),
        ("cuda", 4, [{"CPU": 8.0}, {"CPU": 1.0, "GPU": 4.0}, {"CPU": 2.0, "GPU": 1.0}],
         (4, 1), (2, 1)),
    ],
)  # fmt: skip
def test_an_actor_that_fits_on_no_node_is_refused(
    device: str, cores: int, nodes: list[dict[str, float]], wants: tuple[int, int],
    has: tuple[int, int],
) -> None:  # fmt: skip
    with pytest.raises(BulkError) as refusal:
        ray_runner.actor_resources(Settings(device=device, cpu_threads=cores), nodes)
    assert str(refusal.value) == no_room(wants, has)


def no_room(wants: tuple[int, int], has: tuple[int, int]) -> str:
    """Say what an actor that fits nowhere wants, and what the largest node has: CPUs and GPUs."""
    return (
        f"no node of the cluster can hold an actor, which needs {wants[0]} CPU and {wants[1]} GPU:"
        f" the largest has {has[0]} CPU and {has[1]} GPU"
    )


@pytest.mark.parametrize(
    ("chosen", "resources", "expected"),
    [
        ({}, Resources(3, 0), (3, 3, "cpu")),
        ({"decode_threads": 9}, Resources(3, 1), (3, 9, "auto")),
        ({"device": "cuda:1"}, Resources(1, 1), (1, 1, "cuda")),
        ({"device": "cuda"}, Resources(1, 1), (1, 1, "cuda")),
    ],
)
def test_a_classifier_has_the_cpus_and_gpu_of_its_actor(
    chosen: dict[str, Any], resources: Resources, expected: tuple[int, int, str]
) -> None:
    bounded = ray_runner.limit_settings(resources, Settings(**chosen))
    assert (bounded.cpu_threads, bounded.decode_threads, bounded.device) == expected


def test_a_missing_output_file_or_ray_is_an_error(
    folder: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["classify", str(folder), "--engine", "ray"]
    assert refused(command, capsys) == "--engine ray writes a file: name it with --out"
    monkeypatch.setitem(sys.modules, "ray.data", None)
    told = refused([*command, "--out", str(tmp_path / "out.csv")], capsys)
    assert told == "--engine ray needs Ray: pip install 'googlenet-service[ray]'"


# A real cluster.


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """Two nodes with a CPU each, and one without, by which they know each other.

    One of the two is said to have a GPU, which Ray believes.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_agent_register_timeout_ms", str(1000 * PATIENCE))
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        from ray.cluster_utils import Cluster  # noqa: PLC0415 - it takes seconds

        small = {"object_store_memory": MEMORY, "include_dashboard": False}
        # Of a node that is gone it is to learn within seconds.
        health = {"health_check_period_ms": 500, "health_check_failure_threshold": 4}
        head = {"num_cpus": 0, "num_gpus": 0, "_system_config": health, **small}
        made = Cluster(initialize_head=True, head_node_args=head)
        try:
            for gpus in range(2):
                made.add_node(wait=False, num_cpus=1, num_gpus=gpus, **small)
            made.wait_for_nodes(PATIENCE)
            yield made
        finally:
            made.shutdown()


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of digits, one of which is broken."""
    made = tmp_path_factory.mktemp("digits")
    held_out = sorted((ROOT / "model_store/digits/held_out").glob("*.png"))
    for number in range(IMAGES - 1):
        (made / f"{number:04}.png").symlink_to(held_out[number % len(held_out)])
    (made / "0200b.png").write_bytes(held_out[0].read_bytes()[:-30])
    return made


def on(nodes: Any, *more: str) -> tuple[str, ...]:
    ray = ("--engine", "ray", "--ray-address", nodes.address, "--ray-batch", str(BATCH))
    return *DIGITS, *ray, *more


def rows(out: Path) -> dict[str, dict[str, Any]]:
    """Read results by their names, each of which is there once."""
    found = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    by_name = {row["file"]: row for row in found}
    assert len(by_name) == len(found)
    return by_name


def children(pid: int) -> set[int]:
    """Find the processes that a process has begun, and theirs."""
    found: set[int] = set()
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, file.read_text().split()):
            found |= {child, *children(child)}
    return found


def is_at_work(pid: int) -> bool:
    """Ask Ray, which names a process for the call that it is at."""
    return b"MapBatches(Actor)).submit" in Path(f"/proc/{pid}/cmdline").read_bytes()


@dataclass
class Loss:
    """Takes away a node, and all that runs there, while it is at work."""

    nodes: Any
    out: Path
    rows: int = 0  # that there were by then

    def __call__(self) -> None:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and not self.rows:
            if self.out.read_bytes().count(b"\n") >= BEFORE + 2 * BATCH:
                self._take()
            time.sleep(0.01)

    def _take(self) -> None:
        for node in self.nodes.worker_nodes:
            there = children(node.all_processes["raylet"][0].process.pid)
            for pid in filter(is_at_work, there):
                os.kill(pid, signal.SIGSTOP)
                if not is_at_work(pid):  # it had just ended that
                    os.kill(pid, signal.SIGCONT)
                    continue
                self.rows = self.out.read_bytes().count(b"\n")
                self.nodes.remove_node(node, allow_graceful=False)
                for child in there:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child, signal.SIGKILL)
                return


@pytest.mark.slow
@pytest.mark.usefixtures("nodes")  # Ray knows only one way to prove who one is, the first
def test_a_cluster_that_cannot_be_joined_is_an_error(
    folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    nowhere = ("--engine", "ray", "--ray-address", "nowhere")
    told = refused(["classify", str(folder), *nowhere, "--out", str(tmp_path / "out.csv")], capsys)
    assert told.startswith("cannot join the Ray cluster: ")


@pytest.mark.slow
def test_a_cluster_without_room_for_an_actor_is_an_error(
    nodes: Any, folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    command = ["classify", str(folder), *on(nodes), "--out", str(tmp_path / "out.csv")]
    assert refused([*command, "--cpu-threads", "2"], capsys) == no_room((2, 0), (1, 1))
    gpu = ("--device", "cuda", "--cpu-threads", "2")
    assert refused([*command, *gpu], capsys) == no_room((2, 1), (1, 1))


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what an actor says without a GPU")
def test_an_actor_with_a_gpu_gets_work(
    nodes: Any, folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    """It comes as far as what it loads, which knows that the GPU is none, and which it wanted."""
    command = ["classify", str(folder), *on(nodes), "--out", str(tmp_path / "out.csv")]
    told = refused([*command, "--device", "cuda:1"], capsys)
    assert told == f"{socket.gethostname()}: there is no GPU for device 'cuda'; use auto or cpu"


@pytest.mark.slow
def test_results_of_an_archive_come_while_it_is_read(
    nodes: Any, digits: Path, tmp_path: Path, capsys: Captured
) -> None:
    """It comes through a pipe, whose second half is written when there are results."""
    pipe, out = tmp_path / "digits.tar", tmp_path / "out.jsonl"
    os.mkfifo(pipe)
    files = sorted(digits.iterdir())

    def write() -> None:
        end = time.monotonic() + PATIENCE
        with pipe.open("wb") as stream, tarfile.open(fileobj=stream, mode="w|") as archive:
            archive.add(__file__, "notes.txt")
            for number, file in enumerate(files):
                while number == 250 and not out.stat().st_size and time.monotonic() < end:
                    time.sleep(0.01)
                archive.add(file.resolve(), file.name)
            early.append(out.stat().st_size)

    early: list[int] = []
    writing = threading.Thread(target=write)
    writing.start()
    assert main(["classify", str(pipe), *on(nodes, "--ray-actors", "1"), "--out", str(out)]) == 1
    writing.join()
    assert early[0] > 0
    assert {*rows(out)} == {f"{pipe}/{file.name}" for file in files}
    assert f": 1 .txt ({pipe}/notes.txt)\n" in capsys.readouterr().err


@pytest.mark.slow
def test_each_image_has_its_result_once_even_if_a_node_is_lost(
    nodes: Any, digits: Path, tmp_path: Path, capsys: Captured
) -> None:
    alone, out = tmp_path / "alone.jsonl", tmp_path / "out.jsonl"
    local = ["classify", str(digits), *DIGITS, "--cpu-threads", "1", "--out", str(alone)]
    assert main(local) == 1
    lines = alone.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:BEFORE]) + lines[BEFORE][:20])  # as one who was ended left it
    capsys.readouterr()
    loss = Loss(nodes, out)
    losing = threading.Thread(target=loss)
    losing.start()
    assert main(["classify", str(digits), *on(nodes), "--out", str(out)]) == 1
    losing.join()
    assert BEFORE < loss.rows < IMAGES - BATCH
    assert len(nodes.worker_nodes) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"{IMAGES - BEFORE} images, 1 failures" in printed.err
    wanted, got = rows(alone), rows(out)
    assert got.keys() == wanted.keys()
    for name, row in wanted.items():
        assert got[name]["error"] == row["error"]
        made = [row[column] for column in results_file.ORIGIN]
        assert [got[name][column] for column in results_file.ORIGIN] == made
        assert [prediction["label"] for prediction in got[name]["predictions"]] == [
            prediction["label"] for prediction in row["predictions"]
        ]
        assert got[name]["probability"] == pytest.approx(row["probability"], abs=1e-4)
    assert wanted[f"{digits}/0200b.png"]["error"] == BROKEN

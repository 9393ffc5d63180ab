"""The processors: how many this process may use."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service import processors


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no threads")
def test_only_processors_that_may_be_used_are_counted() -> None:
    def bound() -> int:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # of this thread alone
        return processors.available()

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(bound).result() == 1
    assert processors.available() == min(len(os.sched_getaffinity(0)), max(1, quota_here()))


def quota_here() -> int:
    return processors._quota(Path("/sys/fs/cgroup/cpu.max"))  # noqa: SLF001 - takes the file


def test_where_nobody_knows_which_may_be_used_all_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert processors.available() == max(1, min(os.cpu_count() or 1, quota_here()))


@pytest.mark.parametrize(
    ("content", "count"),
    [
        ("max 100000\n", sys.maxsize),
        ("150000 100000\n", 1),
        ("400000 100000\n", 4),
        ("50000 100000\n", 0),
        ("", sys.maxsize),
        ("many 100000\n", sys.maxsize),
        ("100000\n", sys.maxsize),
        ("1 2 3\n", sys.maxsize),
    ],
)
def test_a_containers_quota_is_in_whole_processors(
    content: str, count: int, tmp_path: Path
) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(content)
    assert processors._quota(file) == count  # noqa: SLF001 - takes the file


def test_without_a_file_there_is_no_quota(tmp_path: Path) -> None:
    assert processors._quota(tmp_path / "cpu.max") == sys.maxsize  # noqa: SLF001 - takes the file


@pytest.mark.parametrize(
    ("flags", "has"),
    [("sse avx512_bf16 amx_bf16", True), ("fp asimd bf16", True), ("sse avx2 avx512_bf", False)],
)
def test_bfloat16_is_multiplied_where_the_system_says_so(
    flags: str,
    has: object,
    tmp_path: Path,
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\nbogomips\t: 1\n")
    assert processors.multiply_bfloat16(tmp_path / "cpuinfo") == has


def test_where_the_system_says_nothing_it_is_not(tmp_path: Path) -> None:
    assert not processors.multiply_bfloat16(tmp_path / "cpuinfo")

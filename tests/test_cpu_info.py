"""The CPUs and the memory that this process may use."""

import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service import cgroups, cpu_info

V1 = "4:memory:/elsewhere\n3:cpu,cpuacct:{path}\n2:cpuset:/\n1:name=systemd:/\n"
V2 = "0::{path}\n"
MANY = 64  # CPUs of the affinity, more than any quota here


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """/proc and /sys/fs/cgroup of a machine with many CPUs and without a quota."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(MANY)), raising=False)
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    cgroups.mkdir()
    return proc, cgroups


def join(proc: Path, content: str) -> None:
    (proc / "self" / "cgroup").write_text(content)


def limit_v2(folder: Path, content: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.max").write_text(content)


def limit_v1(folder: Path, quota: str, period: str = "100000\n") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.cfs_quota_us").write_text(quota)
    (folder / "cpu.cfs_period_us").write_text(period)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no threads")
def test_only_cpus_of_the_affinity_are_counted(tmp_path: Path) -> None:
    def bound() -> int:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # of this thread alone
        return cpu_info.available(tmp_path, tmp_path)

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(bound).result() == 1
    assert cpu_info.available(tmp_path, tmp_path) == len(os.sched_getaffinity(0))


def test_without_affinity_all_cpus_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert cpu_info.available(tmp_path, tmp_path) == (os.cpu_count() or 1)


def test_this_machine_has_at_least_one_cpu() -> None:
    assert 1 <= cpu_info.available() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("content", "count"),
    [
        ("max 100000\n", MANY),
        ("150000 100000\n", 1),
        ("399999 100000\n", 3),
        ("400000 100000\n", 4),
        ("50000 100000\n", 1),
        ("6400000000 100000\n", MANY),
        ("", MANY),
        ("many 100000\n", MANY),
        ("100000\n", MANY),
        ("1 2 3\n", MANY),
        ("100000 0\n", MANY),
    ],
)
def test_a_quota_of_version_2_is_rounded_down_to_at_least_one_cpu(
    content: str, count: int, roots: tuple[Path, Path]
) -> None:
    proc, cgroups = roots
    join(proc, V2.format(path="/"))
    limit_v2(cgroups, content)
    assert cpu_info.available(proc, cgroups) == count


@pytest.mark.parametrize(
    ("quota", "period", "count"),
    [
        ("-1\n", "100000\n", MANY),
        ("300000\n", "100000\n", 3),
        ("350000\n", "100000\n", 3),
        ("100000\n", "50000\n", 2),
        ("20000\n", "100000\n", 1),
        ("300000\n", "", MANY),
        ("300000\n", "0\n", MANY),
        ("", "100000\n", MANY),
    ],
)
def test_a_quota_of_version_1_is_rounded_down_to_at_least_one_cpu(
    quota: str, period: str, count: int, roots: tuple[Path, Path]
) -> None:
    proc, cgroups = roots
    join(proc, V1.format(path="/"))
    limit_v1(cgroups / "cpu,cpuacct", quota, period)
    assert cpu_info.available(proc, cgroups) == count


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct", "cpuacct,cpu"])
def test_version_1_is_found_by_each_name_of_its_mount(mount: str, roots: tuple[Path, Path]) -> None:
    proc, cgroups = roots
    join(proc, V1.format(path="/jobs/one"))
    limit_v1(cgroups / mount / "jobs" / "one", "500000\n")
    assert cpu_info.available(proc, cgroups) == 5


@pytest.mark.parametrize("limited", ["", "kubepods", "kubepods/pod1", "kubepods/pod1/app"])
def test_the_smallest_quota_of_all_ancestors_counts_in_version_2(
    limited: str, roots: tuple[Path, Path]
) -> None:
    proc, cgroups = roots
    join(proc, V2.format(path="/kubepods/pod1/app"))
    for folder in ("kubepods", "kubepods/pod1", "kubepods/pod1/app"):
        limit_v2(cgroups / folder, "900000 100000\n")
    limit_v2(cgroups / limited, "200000 100000\n")
    limit_v2(cgroups / "kubepods" / "pod2", "100000 100000\n")  # of a neighbour
    assert cpu_info.available(proc, cgroups) == 2


@pytest.mark.parametrize("limited", ["", "docker", "docker/app"])
def test_the_smallest_quota_of_all_ancestors_counts_in_version_1(
    limited: str, roots: tuple[Path, Path]
) -> None:
    proc, cgroups = roots
    join(proc, V1.format(path="/docker/app"))
    for folder in ("docker", "docker/app"):
        limit_v1(cgroups / "cpu" / folder, "900000\n")
    limit_v1(cgroups / "cpu" / limited, "200000\n")
    assert cpu_info.available(proc, cgroups) == 2


def test_a_container_that_sees_the_hosts_path_finds_its_quota_at_the_root_of_the_mount(
    roots: tuple[Path, Path],
) -> None:
    proc, cgroups = roots
    join(proc, V1.format(path="/docker/0a1b2c") + V2.format(path="/docker/0a1b2c"))
    limit_v1(cgroups / "cpu,cpuacct", "300000\n")
    assert cpu_info.available(proc, cgroups) == 3
    limit_v2(cgroups / "unified", "200000 100000\n")
    assert cpu_info.available(proc, cgroups) == 2


def test_a_cgroup_outside_the_namespace_is_not_read(roots: tuple[Path, Path]) -> None:
    proc, cgroups = roots
    join(proc, V2.format(path="/../../other"))
    limit_v2(cgroups, "300000 100000\n")
    limit_v2(cgroups.parent / "other", "100000 100000\n")
    limit_v2(cgroups.parent, "100000 100000\n")
    assert cpu_info.available(proc, cgroups) == 3


def test_the_smaller_of_both_versions_counts_where_both_are_mounted(
    roots: tuple[Path, Path],
) -> None:
    proc, cgroups = roots
    join(proc, V1.format(path="/a") + V2.format(path="/b"))
    limit_v1(cgroups / "cpu" / "a", "200000\n")
    limit_v2(cgroups / "unified" / "b", "700000 100000\n")
    assert cpu_info.available(proc, cgroups) == 2


@pytest.mark.parametrize("content", ["", "nonsense\n", "1:memory:/\n", "1:cpuset:/\n"])
def test_a_process_without_a_cgroup_that_limits_cpu_has_no_quota(
    content: str, roots: tuple[Path, Path]
) -> None:
    proc, cgroups = roots
    limit_v1(cgroups / "cpu", "200000\n")
    limit_v2(cgroups, "200000 100000\n")
    assert cpu_info.available(proc, cgroups) == MANY  # without the file, too
    join(proc, content)
    assert cpu_info.available(proc, cgroups) == MANY


@pytest.mark.parametrize(("content", "limit"), [("max\n", None), ("5000\n", 5000), ("", None)])
@pytest.mark.parametrize(
    ("membership", "file"),
    [
        (V2, "pod/app/memory.max"),
        (V2, "memory.max"),
        (V2, "unified/pod/memory.max"),
        ("4:memory:{path}\n", "memory/pod/app/memory.limit_in_bytes"),
        ("4:memory:{path}\n", "memory/memory.limit_in_bytes"),
    ],
)
def test_the_smallest_limit_of_memory_of_all_ancestors_counts(
    membership: str, file: str, content: str, limit: int | None, roots: tuple[Path, Path]
) -> None:
    proc, mount = roots
    join(proc, membership.format(path="/pod/app"))
    for folder in ("", "memory"):
        path = mount / folder / "pod/memory.max"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("9000\n")
    path = mount / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    assert cgroups.memory(proc, mount) == (limit or 9000)


def test_without_a_cgroup_memory_has_no_limit(roots: tuple[Path, Path]) -> None:
    assert cgroups.memory(*roots) == sys.maxsize


@pytest.mark.parametrize(("chosen", "threads"), [(3, 3), (0, 2)])
def test_one_thread_a_cpu_decodes_unless_a_number_is_chosen(
    chosen: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_info, "available", lambda: 2)
    assert cpu_info.decoding(chosen) == threads


@pytest.mark.parametrize(
    ("flags", "has"),
    [("sse avx512_bf16 amx_bf16", True), ("fp asimd bf16", True), ("sse avx2 avx512_bf", False)],
)
def test_bfloat16_is_detected_by_the_flags_of_the_cpu(
    flags: str,
    has: object,
    tmp_path: Path,
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\nbogomips\t: 1\n")
    assert cpu_info.multiply_bfloat16(tmp_path / "cpuinfo") == has


def test_without_cpuinfo_there_is_no_bfloat16(tmp_path: Path) -> None:
    assert not cpu_info.multiply_bfloat16(tmp_path / "cpuinfo")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (
            "processor : 0\nmodel name : Some CPU @ 1 GHz\nmodel name : Some CPU @ 1 GHz\n",
            "Some CPU @ 1 GHz",
        ),
        ("CPU implementer : 0x41\n", platform.machine()),
        (None, platform.machine()),
    ],
)
def test_the_processor_is_named_as_well_as_the_system_tells(
    text: str | None, name: str, tmp_path: Path
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    if text is not None:
        cpuinfo.write_text(text)
    assert cpu_info.model_name(cpuinfo) == name

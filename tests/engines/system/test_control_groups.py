"""Limits of groups, from folders as the kernel shows them, and from a real group where one can be made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mutoscope_engines.system.control_groups import cpu_limit, memory_limit_bytes

GIB = 1 << 30
NO_LIMIT = "9223372036854771712"  # what version 1 says without one


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "proc").mkdir()
    return tmp_path / "proc"


def mounted(proc: Path, mount_point: Path, *, root: str = "/", kind: str = "cgroup2", options: str = "rw") -> None:
    """A line of mountinfo, behind one of a disk."""
    disk = "26 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro\n"
    escaped = str(mount_point).replace(" ", r"\040")
    before = (proc / "mountinfo").read_text() if (proc / "mountinfo").exists() else disk
    (proc / "mountinfo").write_text(
        f"{before}31 23 0:28 {root} {escaped} rw,nosuid shared:9 - {kind} cgroup {options}\n"
    )


def member(proc: Path, *lines: str) -> None:
    (proc / "cgroup").write_text("".join(f"{line}\n" for line in lines))


def limits(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def test_where_there_are_no_groups_there_is_no_limit(proc: Path) -> None:
    assert cpu_limit(proc) is None
    assert memory_limit_bytes(proc) is None


def test_a_container_sees_its_own_group_as_the_root(proc: Path, tmp_path: Path) -> None:
    mounted(proc, tmp_path / "cgroup")
    member(proc, "0::/")
    limits(tmp_path / "cgroup", cpu__max="150000 100000", memory__max=str(2 * GIB))
    assert (cpu_limit(proc), memory_limit_bytes(proc)) == (1.5, 2 * GIB)


@pytest.mark.parametrize("level", ["service", "slice", "root"])
def test_the_limit_of_every_group_above_counts(proc: Path, tmp_path: Path, level: str) -> None:
    """systemd's CPUQuota= and MemoryMax=, of a service or of the slice that it is in."""
    root = tmp_path / "cgroup"
    folders = {"root": root, "slice": root / "system.slice", "service": root / "system.slice/movies.service"}
    mounted(proc, root)
    member(proc, "0::/system.slice/movies.service")
    for folder in folders.values():
        limits(folder, cpu__max="max 100000", memory__max="max", memory__high="max")
    limits(folders[level], cpu__max="200000 100000", memory__max=str(3 * GIB))
    assert (cpu_limit(proc), memory_limit_bytes(proc)) == (2.0, 3 * GIB)


def test_of_several_limits_the_lowest_counts(proc: Path, tmp_path: Path) -> None:
    mounted(proc, tmp_path / "cgroup")
    member(proc, "0::/a/b")
    limits(tmp_path / "cgroup/a", cpu__max="300000 100000", memory__max=str(2 * GIB))
    limits(tmp_path / "cgroup/a/b", cpu__max="800000 100000", memory__max=str(4 * GIB))
    assert (cpu_limit(proc), memory_limit_bytes(proc)) == (3.0, 2 * GIB)


def test_memory_above_which_a_group_is_slowed_down_is_a_limit(proc: Path, tmp_path: Path) -> None:
    mounted(proc, tmp_path / "cgroup")
    member(proc, "0::/batch")
    limits(tmp_path / "cgroup/batch", memory__max=str(8 * GIB), memory__high=str(6 * GIB))
    assert memory_limit_bytes(proc) == 6 * GIB


def test_another_group_limits_nothing(proc: Path, tmp_path: Path) -> None:
    mounted(proc, tmp_path / "cgroup")
    member(proc, "0::/ours")
    limits(tmp_path / "cgroup/ours", cpu__max="max 100000", memory__max="max")
    limits(tmp_path / "cgroup/theirs", cpu__max="100000 100000", memory__max="4096")
    limits(tmp_path / "cgroup/ours/below", cpu__max="100000 100000", memory__max="4096")
    assert (cpu_limit(proc), memory_limit_bytes(proc)) == (None, None)


def test_in_version_1_each_controller_has_a_tree_of_its_own(proc: Path, tmp_path: Path) -> None:
    mounted(proc, tmp_path / "cpu", kind="cgroup", options="rw,cpu,cpuacct")
    mounted(proc, tmp_path / "memory", kind="cgroup", options="rw,memory")
    mounted(proc, tmp_path / "unified")
    member(proc, "4:memory:/jobs/7", "3:cpuset:/", "2:cpu,cpuacct:/jobs", "0::/")
    limits(tmp_path / "cpu", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    limits(tmp_path / "cpu/jobs", cpu__cfs_quota_us="50000", cpu__cfs_period_us="100000")
    limits(tmp_path / "memory", memory__limit_in_bytes=NO_LIMIT)
    limits(tmp_path / "memory/jobs", memory__limit_in_bytes=str(GIB))
    limits(tmp_path / "memory/jobs/7", memory__limit_in_bytes=NO_LIMIT)
    assert (cpu_limit(proc), memory_limit_bytes(proc)) == (0.5, GIB)


def test_a_mount_can_show_the_groups_below_one_group_alone(proc: Path, tmp_path: Path) -> None:
    """Docker with version 1: the process's group is at the mount point, under a long name."""
    mounted(proc, tmp_path / "memory", root="/docker/4f1e", kind="cgroup", options="rw,memory")
    member(proc, "4:memory:/docker/4f1e/inner", "0::/")
    limits(tmp_path / "memory", memory__limit_in_bytes=str(2 * GIB))
    limits(tmp_path / "memory/inner", memory__limit_in_bytes=str(GIB))
    assert memory_limit_bytes(proc) == GIB


@pytest.mark.parametrize(("root", "own"), [("/other", "/ours"), ("/", "/../ours")])
def test_a_mount_that_does_not_show_the_groups_of_the_process_says_nothing(
    proc: Path, tmp_path: Path, root: str, own: str
) -> None:
    mounted(proc, tmp_path / "cgroup", root=root)
    member(proc, f"0::{own}")
    limits(tmp_path / "cgroup", memory__max="4096")
    limits(tmp_path / "ours", memory__max="4096")
    assert memory_limit_bytes(proc) is None


def test_names_with_spaces_and_colons_are_read(proc: Path, tmp_path: Path) -> None:
    mounted(proc, tmp_path / "control groups")
    member(proc, r"0::/user@0.service/app-a\x2db: c.scope")
    limits(tmp_path / "control groups" / r"user@0.service/app-a\x2db: c.scope", memory__max=str(GIB))
    assert memory_limit_bytes(proc) == GIB


@pytest.fixture
def real_groups() -> Iterator[list[Path]]:
    """Nested groups of this machine's kernel, the outer ones limited to 1.5 cores and 1 GiB."""
    top = Path("/sys/fs/cgroup")
    made: list[Path] = []
    try:
        for tree in [top] if (top / "cgroup.controllers").exists() else [top / "cpu", top / "memory"]:
            outer = tree / f"mutoscope-test-{os.getpid()}"
            for folder in (outer, outer / "inner"):
                folder.mkdir()
                made.append(folder)
        set_ = [limit for outer in made[::2] for limit in LIMITS.items() if write_if_there(outer / limit[0], limit[1])]
        if len(set_) < 2:
            pytest.skip("the controllers of version 2 are not handed on to new groups here")
        yield made[1::2]
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error.strerror}")
    finally:
        for folder in reversed(made):
            folder.rmdir()


LIMITS = {
    "cpu.max": "150000 100000",
    "cpu.cfs_quota_us": "150000",
    "memory.max": str(GIB),
    "memory.limit_in_bytes": str(GIB),
}


def write_if_there(file: Path, text: str) -> bool:
    if there := file.exists():
        file.write_text(text)
    return there


NOT_LET_IN = 77
LIMITS_IN_GROUPS = f"""
import errno, json, sys, time
from pathlib import Path

for group in sys.argv[1:]:
    for left in reversed(range(10)):
        try:
            (Path(group) / "cgroup.procs").write_text("0")
            break
        except OSError as error:  # some kernels refuse it for a moment
            if error.errno != errno.EINVAL:
                raise
            if not left:
                print(f"{{group}}/cgroup.procs: {{error.strerror}}")
                sys.exit({NOT_LET_IN})
            time.sleep(0.1)

from mutoscope_engines.system.control_groups import cpu_limit, memory_limit_bytes
print(json.dumps([cpu_limit(), memory_limit_bytes()]))
"""


def test_a_process_in_a_real_group_below_a_limited_one_sees_the_limits(real_groups: list[Path]) -> None:
    command = [sys.executable, "-c", LIMITS_IN_GROUPS, *map(str, real_groups)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == NOT_LET_IN:
        pytest.skip(f"the kernel lets no process into the group: {done.stdout.strip()}")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [1.5, GIB]


@pytest.mark.parametrize("line", ["", "none", "1 2 3", "0:x - :", r"31 23 0:28 / /\999 rw - cgroup2 cgroup rw"])
def test_a_line_of_another_form_is_passed_over(proc: Path, tmp_path: Path, line: str) -> None:
    """As a sandbox that pretends to be the kernel may write it."""
    (proc / "mountinfo").write_text(f"{line}\n")
    mounted(proc, tmp_path / "cgroup")
    member(proc, line, "0::/")
    limits(tmp_path / "cgroup", cpu__max="150000 100000", memory__max=str(2 * GIB))
    assert (cpu_limit(proc), memory_limit_bytes(proc)) == (1.5, 2 * GIB)

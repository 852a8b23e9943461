"""The limits that Linux control groups, of version 1 or 2, set to this process. Elsewhere there are none.

Knows the kernel's files. Knows nothing of what the limits are used for.

A process is held to the limits of its group and of every group above it: containers, systemd and batch systems set them
at different levels. Sources: cgroups(7), proc_pid_mountinfo(5), and admin-guide/cgroup-v1 and cgroup-v2 of the kernel.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

PROC = Path("/proc/self")
# `memory.high` kills nothing, but a group above it is slowed down until it hardly runs.
MEMORY_LIMITS = ("memory.max", "memory.high", "memory.limit_in_bytes")


def cpu_limit(proc: Path = PROC) -> float | None:
    """How many cores' time this process may take, such as 1.5; `None` without a limit."""
    return min(filter(None, map(_cpu_limit, _groups("cpu", proc))), default=None)


def memory_limit_bytes(proc: Path = PROC) -> int | None:
    """Bytes of memory that this process may take; `None` without a limit."""
    limits = [_read(group / name) for group in _groups("memory", proc) for name in MEMORY_LIMITS]
    return min((int(limit) for limit in limits if limit.isdecimal()), default=None)


def _cpu_limit(group: Path) -> float | None:
    quota, _, period = _read(group / "cpu.max").partition(" ")
    if not quota:
        quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


def _groups(controller: str, proc: Path) -> Iterator[Path]:
    """The folders of the process's group and of the groups above it, as far up as they can be seen."""
    memberships = dict(_memberships(proc))
    for line in _read(proc / "mountinfo").splitlines():
        mount, _, file_system = line.partition(" - ")
        try:
            _, _, _, root, mount_point, *_ = map(_unescaped, mount.split(" "))
            kind, _, options = file_system.split(" ", 2)
        except ValueError:  # not a form that the kernel documents: some sandboxes write their own
            continue
        if kind == "cgroup2":
            own = memberships.get("")
        elif kind == "cgroup" and controller in options.split(","):
            own = memberships.get(controller)
        else:
            continue
        # A mount can show the groups below one group alone, as in a container; ".." lies outside of what is shown.
        if own is not None and own.is_relative_to(root) and ".." not in own.parts:
            below = own.relative_to(root)
            yield from (Path(mount_point) / group for group in (below, *below.parents))


def _memberships(proc: Path) -> Iterator[tuple[str, PurePosixPath]]:
    """The process's group by controller; that of version 2, which is the same for all, by ""."""
    for line in _read(proc / "cgroup").splitlines():
        _, *rest = line.split(":", 2)
        if len(rest) == 2:
            controllers, group = rest
            yield from ((controller, PurePosixPath(group)) for controller in controllers.split(","))


def _unescaped(text: str) -> str:
    return re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), text)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="surrogateescape").strip()
    except OSError:
        return ""

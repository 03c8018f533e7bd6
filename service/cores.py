"""The cores a process may use: those it may run on, and no more than its container may consume.

The host's cores are another number: threads for cores that are not there only wait for each other
while the kernel holds the container back.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_CONTROLLERS = ("cpu", "cpu,cpuacct", "cpuacct,cpu")


def cores(root: Path = Path("/")) -> int:
    """Whole cores, at least 1. ``root`` is where /proc and /sys are."""
    allowed = _allowed()
    limits = list(_limits(root))
    return max(1, min([allowed, *(int(limit) for limit in limits)]))


def _allowed() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _limits(root: Path) -> Iterator[float]:
    """The quotas of this process' control groups and of those above them, in cores."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    mounts = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        # Seen from inside a container the path may be the host's, which is not there: what is
        # mounted is then the container's own group.
        if ".." in path:
            continue
        groups = [path.strip("/"), *(str(each).strip("/") for each in PurePosixPath(path).parents)]
        for group in dict.fromkeys(groups):
            if not controllers:
                yield from _of_version_2(mounts / group)
            elif "cpu" in controllers.split(","):
                for name in _CONTROLLERS:
                    yield from _of_version_1(mounts / name / group)


def _of_version_2(group: Path) -> Iterator[float]:
    match _words(group / "cpu.max"):
        case [quota, period] if quota != "max":
            yield int(quota) / int(period)


def _of_version_1(group: Path) -> Iterator[float]:
    match _words(group / "cpu.cfs_quota_us"), _words(group / "cpu.cfs_period_us"):
        case [quota], [period] if int(quota) > 0:
            yield int(quota) / int(period)


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []

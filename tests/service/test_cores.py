"""Cores: what the control groups of a container allow, told by files like the kernel's."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.cores import cores

V2 = {"proc/self/cgroup": "0::/\n"}
V1 = {"proc/self/cgroup": "5:memory:/\n4:cpu,cpuacct:/docker/abc\n0::/\n"}
PERIOD = "cpu.cfs_period_us"
QUOTA = "cpu.cfs_quota_us"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({**V2, "cpu.max": "max 100000\n"}, 8),
        ({**V2, "cpu.max": "200000 100000\n"}, 2),
        ({**V2, "cpu.max": "250000 100000\n"}, 2),
        ({**V2, "cpu.max": "50000 100000\n"}, 1),
        ({**V2, "cpu.max": "1600000 100000\n"}, 8),
        # A group's limit holds for all below it.
        (
            {
                "proc/self/cgroup": "0::/pods/pod/box\n",
                "pods/cpu.max": "max 100000\n",
                "pods/pod/cpu.max": "300000 100000\n",
                "pods/pod/box/cpu.max": "400000 100000\n",
            },
            3,
        ),
        # The host's path, which is not there: the container sees its own group only.
        ({"proc/self/cgroup": "0::/docker/abc\n", "cpu.max": "400000 100000\n"}, 4),
        ({"proc/self/cgroup": "0::/../other\n", "cpu.max": "400000 100000\n"}, 8),
        ({**V1, f"cpu/docker/abc/{QUOTA}": "-1\n", f"cpu/docker/abc/{PERIOD}": "100000\n"}, 8),
        ({**V1, f"cpu/docker/abc/{QUOTA}": "150000\n", f"cpu/docker/abc/{PERIOD}": "50000\n"}, 3),
        ({**V1, f"cpu,cpuacct/{QUOTA}": "200000\n", f"cpu,cpuacct/{PERIOD}": "100000\n"}, 2),
        ({**V1, f"cpu/{QUOTA}": "200000\n"}, 8),
    ],
)
def test_cores_are_those_of_the_quota(
    files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole cores, at least one, and no more than the process may run on, of either version of
    control groups."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    for name, text in files.items():
        inside = name.startswith("proc/")
        path = tmp_path / name if inside else tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert cores(tmp_path) == expected


def test_cores_of_this_machine_are_some() -> None:
    """Whatever this machine limits, there is one at least."""
    assert cores() >= 1

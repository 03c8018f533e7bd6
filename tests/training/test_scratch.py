"""Folders for what comes between: none outlives the next run."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from training.scratch import scratch, temporary

KILLED = """
import os, signal, sys
from pathlib import Path
from training.scratch import scratch
with scratch(Path(sys.argv[1])) as work:
    (work / "rows-00000.parquet").write_bytes(b"spilled")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_taken_away_by_the_next(tmp_path: Path) -> None:
    """No handler runs at SIGKILL: its folder stays until then."""
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert [file.name for file in tmp_path.glob("*/*.parquet")] == ["rows-00000.parquet"]
    with scratch(tmp_path) as work:
        assert list(tmp_path.iterdir()) == [work]
    assert not tmp_path.exists()


def test_what_another_process_is_at_work_in_stays(tmp_path: Path) -> None:
    """Its lock says so, and a folder that has no lock yet was just made."""
    young = tmp_path / ".made-young"
    young.mkdir()
    with temporary(tmp_path, ".made-") as one, temporary(tmp_path, ".made-") as other:
        assert sorted(tmp_path.iterdir()) == sorted([one, other, young])
    assert list(tmp_path.iterdir()) == [young]


def test_a_folder_where_nothing_came_of_it_goes_too(tmp_path: Path) -> None:
    """With the error that ended the work; a file that was there keeps it."""
    out = tmp_path / "deep/out"
    with pytest.raises(ValueError, match="no such rows"), scratch(out):
        raise ValueError("no such rows")
    assert not out.exists()
    (tmp_path / "kept").touch()
    with scratch(tmp_path):
        pass
    assert (tmp_path / "kept").exists()

"""The lease: one holder at a time, whoever is killed."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.kill import end, start
from training.lease import Lease, LeaseError


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_second_one_is_told_who_holds_it(tmp_path: Path) -> None:
    """It fails at once and says which process; released, the lease is free."""
    with Lease(tmp_path, "lease").held() as first:
        first.check()
        with pytest.raises(LeaseError, match=f"held by process {os.getpid()} on "):
            Lease(tmp_path, "lease").held().__enter__()
        first.check()
    with pytest.raises(LeaseError, match="lost"):
        first.check()
    with Lease(tmp_path, "lease").held() as second:
        second.check()
        assert files(tmp_path) == ["lease.2"]


def test_it_is_renewed_while_its_holder_works(tmp_path: Path) -> None:
    """The expiry moves on; nobody takes over a holder that works longer than the lease lasts."""
    with Lease(tmp_path, "lease", seconds=0.3).held() as lease:
        before = expiry = json.loads((tmp_path / "lease.1").read_text())["expires"]
        deadline = time.monotonic() + 120
        while expiry < before + 0.6:
            assert time.monotonic() < deadline
            time.sleep(0.01)
            expiry = json.loads((tmp_path / "lease.1").read_text())["expires"]
        lease.check()


def test_that_of_a_killed_process_goes_to_one_other_once_it_expires(tmp_path: Path) -> None:
    """kill -9 leaves the file; of many that wait for its end one gets it."""

    def doomed() -> None:
        with Lease(tmp_path, "lease", seconds=0.5).held():
            os.kill(os.getpid(), signal.SIGKILL)

    assert end(start(doomed)) == -signal.SIGKILL
    gate = tmp_path.parent / f"{tmp_path.name}-gate"

    def taker() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                with Lease(tmp_path, "lease", seconds=60).held():
                    with gate.open("a") as log:
                        log.write("held\n")
                    os.kill(os.getpid(), signal.SIGKILL)
            except LeaseError as error:
                if "for 0 s" not in str(error) and "s more" in str(error):
                    os._exit(3)  # held by another taker, for a minute
                time.sleep(0.001)

    ends = [end(child) for child in [start(taker) for _ in range(6)]]
    assert gate.read_text() == "held\n"
    assert sorted(ends) == [-signal.SIGKILL, 3, 3, 3, 3, 3]


def test_who_was_taken_over_finds_out_and_leaves_the_lease_alone(tmp_path: Path) -> None:
    """As after a process slept: `check` raises, and its release does not free the other's."""
    lease, other = Lease(tmp_path, "lease", seconds=60), Lease(tmp_path, "lease", seconds=60)
    with ExitStack() as stack:
        with lease.held():
            lease._write(1, expires=0.0)  # as if its time had passed unnoticed
            stack.enter_context(other.held())
            with pytest.raises(LeaseError, match="lost to process"):
                lease.check()
        other.check()


def test_a_holder_of_long_ago_does_not_take_what_has_moved_on(tmp_path: Path) -> None:
    """Whoever creates a file below the highest has not got the lease, and leaves nothing."""
    with Lease(tmp_path, "lease").held():
        (tmp_path / "lease.1").rename(tmp_path / "lease.5")
        late = Lease(tmp_path, "lease")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Lease, "_highest", lambda self: 0)
            with pytest.raises(LeaseError, match="just taken"):
                late.held().__enter__()
        assert files(tmp_path) == ["lease.5"]


def test_a_file_that_is_not_written_yet_is_someones(tmp_path: Path) -> None:
    """Between its creation and its content a lease is held."""
    (tmp_path / "lease.1").touch()
    with pytest.raises(LeaseError, match="held by another"):
        Lease(tmp_path, "lease").held().__enter__()
    os.utime(tmp_path / "lease.1", (0, 0))
    with Lease(tmp_path, "lease").held() as lease:
        lease.check()

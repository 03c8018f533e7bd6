"""Killing work at each of its steps: what it leaves on disk must still be sound."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable, Collection
from types import FrameType
from typing import Any

# C functions that change what is on disk, or make sure of it.
STEPS = {
    *("write", "tofile", "flush", "fsync", "rename", "mkdir", "rmdir", "unlink", "flock"),
    "serialize_file",
}
# What changes something in Redis, or asks for it.
SENDING = {"sendall"}


def start(work: Callable[[], object]) -> int:
    """Run ``work`` in a forked process; its id."""
    with warnings.catch_warnings():  # from 3.12 on: numpy's idle threads are not forked
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        try:
            if "torch" in sys.modules:  # of whose threads only this one was forked
                sys.modules["torch"].set_num_threads(1)
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return child


def end(child: int) -> int:
    """Wait for a process of ours; its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_before_step(last: int, work: Callable[[], object]) -> bool:
    """Run ``work`` in a process that is killed just before its ``last`` step; whether it was."""

    def doomed() -> None:
        die_before_step(last, STEPS)
        work()

    status = end(start(doomed))
    assert status in {0, -signal.SIGKILL}
    return status != 0


def die_before_step(last: int, names: Collection[str]) -> None:
    """Have this thread's process killed just before its ``last`` call of a C function so named."""
    steps = 0

    def watch(_frame: FrameType, event: str, function: Any) -> None:
        nonlocal steps
        if event == "c_call" and function.__name__ in names:
            steps += 1
            if steps == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(watch)

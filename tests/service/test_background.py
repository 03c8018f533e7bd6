"""Background work: its thread steps back, and no other does."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from service.background import background


def nice() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux knows priorities of threads")
def test_only_its_own_thread_is_of_low_priority() -> None:
    """Lower than what started it, as it was before."""
    before = nice()
    with background("test") as pool:
        assert pool.submit(nice).result() == min(19, before + 10)
        assert pool.submit(lambda: threading.current_thread().name).result() == "test_0"
    assert nice() == before

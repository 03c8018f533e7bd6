"""Background work: a thread that lets requests go first."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

# Enough to leave requests nine tenths of a core that both want, and not so much that the thread is
# kept from running while it holds the interpreter's lock, which requests need too.
_NICE = 10


def background(name: str) -> ThreadPoolExecutor:
    """A pool of one thread of low priority, where the system knows priorities of threads."""
    return ThreadPoolExecutor(1, thread_name_prefix=name, initializer=_yield)


def _yield() -> None:
    if sys.platform == "linux":  # elsewhere a priority is the whole process's
        thread = threading.get_native_id()
        nice = os.getpriority(os.PRIO_PROCESS, thread) + _NICE
        os.setpriority(os.PRIO_PROCESS, thread, min(19, nice))

"""Background work: a thread that runs when no request wants the core."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

_NICE = 19


def background(name: str) -> ThreadPoolExecutor:
    """A pool of one thread of the lowest priority, where the system knows priorities of threads."""
    return ThreadPoolExecutor(1, thread_name_prefix=name, initializer=_yield)


def _yield() -> None:
    if sys.platform == "linux":  # elsewhere a priority is the whole process's
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)

"""The last line of a retraining, for those who scheduled it: told when all else is, also on stderr,
and whatever ends the job, a signal that comes before it has begun among it.

Only the standard library is loaded here: from this module on signals are told, and loading the rest
takes seconds.
"""

from __future__ import annotations

import json
import os
import signal
import time
from types import FrameType

_BEGAN = time.perf_counter()
_said: list[str] = []


def say(line: str) -> None:
    """Have it told in the end."""
    _said.append(line)


def tell() -> None:
    """Print what was said."""
    while _said:
        print(_said.pop(0), flush=True)


def failed(error: str) -> str:
    """The line of a job that failed before it was known of which model it is."""
    line = " ".join(error.split())
    seconds = round(time.perf_counter() - _BEGAN, 3)
    return json.dumps({"status": "failed", "model": "", "error": line, "seconds": seconds})


def stop(number: int, frame: FrameType | None) -> None:
    """Tell of a signal and end: 1 by SIGTERM, 130 by Ctrl-C, as later."""
    interrupted = number == signal.SIGINT
    error = "KeyboardInterrupt" if interrupted else "stopped by SIGTERM"
    os.write(1, f"{failed(error)}\n".encode())  # print may be at work where the signal came
    os._exit(130 if interrupted else 1)


def begin() -> None:
    """From now on signals are told."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def end() -> None:
    """Whoever begins tells of them from now on; SIGTERM is nobody's for the moment."""
    if signal.getsignal(signal.SIGTERM) is stop:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.default_int_handler)

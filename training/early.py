"""What ends a retraining before it has begun is told in a last line too, as every other end.

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


def failed(error: str) -> str:
    """The line, of an unknown model."""
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

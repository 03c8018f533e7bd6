"""``python -m bench.profiled FILE MODULE ARGUMENT...``: a module, with its main thread profiled.

From SIGUSR1 on cProfile counts the CPU time of the main thread, so what it waits for counts
nothing. FILE gets, as JSON when the module ends, the seconds by the module whose code they passed
in; what is called in C counts for the module that calls it.
"""

from __future__ import annotations

import atexit
import cProfile
import json
import pstats
import runpy
import signal
import sys
import time
from collections import defaultdict
from pathlib import Path

PLACE = Path(__file__).resolve().parents[1]
LOOP = "the event loop"


def by_module(stats: pstats.Stats) -> dict[str, float]:
    """Seconds of self time by module."""
    found: dict[str, float] = defaultdict(float)
    for (file, _, _), (_, _, _, _, callers) in stats.stats.items():  # type: ignore[attr-defined]
        for (caller, _, name), (_, _, own, _) in callers.items():
            inner = caller if _is_c(file) else file
            found[LOOP if name == "run_until_complete" else module(inner)] += own
    return found


def module(file: str) -> str:
    """Ours by their full name, those of others by their package."""
    path = Path(file)
    if "site-packages" in path.parts:
        return path.parts[path.parts.index("site-packages") + 1]
    if path.is_relative_to(PLACE):
        return ".".join(path.relative_to(PLACE).with_suffix("").parts)
    return "Python's library" if path.suffix == ".py" else LOOP


def _is_c(file: str) -> bool:
    return file in ("~", "") or file.startswith("<")


def main() -> None:
    target, name, *arguments = sys.argv[1:]
    sys.argv = [name, *arguments]
    profile = cProfile.Profile(time.thread_time)
    signal.signal(signal.SIGUSR1, lambda *_: profile.enable())

    def tell() -> None:
        profile.disable()
        found = by_module(pstats.Stats(profile)) if profile.getstats() else {}
        Path(target).write_text(json.dumps(found))

    atexit.register(tell)
    runpy.run_module(name, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

"""What a command shows while it works: bars on a terminal, lines in a log."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable

import pytest
from rich.console import Console

from terminal.progress import progress


class Log(io.StringIO):
    """What a console wrote that is no terminal; `until` waits for it."""

    def until(self, text: str) -> None:
        deadline = time.monotonic() + 120
        while not re.search(text, self.getvalue()):
            assert time.monotonic() < deadline, self.getvalue()
            time.sleep(0.01)


def console(file: io.StringIO, terminal: bool = False, width: int = 100) -> Console:
    return Console(file=file, force_terminal=terminal, force_interactive=terminal, width=width)


def test_a_log_gets_lines_with_count_rate_and_time_left() -> None:
    """Plain lines, each of the stage under way, and one at its end."""
    log = Log()
    with progress(console(log), seconds=0.05) as update:
        for done in range(0, 1001, 100):
            update("train", done, 2000, {"loss": 0.5})
            time.sleep(0.02)
        clock = r"\d:\d\d:\d\d"
        log.until(rf"train: 1,000/2,000, [\d,]+/s, {clock} so far, {clock} left, loss 0\.5000\n")
        update("train", 2000, 2000, {})
        log.until(rf"train: 2,000/2,000, [\d,]+/s, done in {clock}\n")
    assert "\x1b" not in log.getvalue()
    assert all(line.startswith("train: ") for line in log.getvalue().splitlines())


def test_seconds_have_no_rate_and_a_whole_that_changes_is_the_new_one() -> None:
    """The time left goes by the new whole, at the speed so far."""
    log = Log()
    with progress(console(log), seconds=0.05) as update:
        for total in (100, 1000):
            for done in range(6):
                update("all (s)", done, total, {})
                time.sleep(0.01)
        log.until(r"all \(s\): 5/1,000, 0:00:0\d so far, 0:\d\d:\d\d left\n")


def test_a_log_says_how_long_a_stage_takes_whose_end_is_not_known() -> None:
    """No count and no rate; it ends where the next stage begins, and the last one with the rest."""
    log = Log()
    with progress(console(log), seconds=0.05) as update:
        update("trace", 0, 0, {})
        log.until(r"trace: 0:00:0\d so far\n")
        update("publish", 0, 0, {})
        log.until(r"trace: done in 0:00:0\d\n")
        log.until(r"publish: 0:00:0\d so far\n")
    assert log.getvalue().splitlines()[-1].startswith("publish: done in ")


def test_a_log_gets_nothing_of_short_stages() -> None:
    """What is over before the first line is due leaves the log as it was."""
    log = Log()
    with progress(console(log)) as update:
        update("read", 0, 0, {})
        update("write", 1, 1, {})
    assert log.getvalue() == ""


def test_a_stage_that_comes_again_starts_anew() -> None:
    """Its rate and its time are those of the new turn."""
    log = Log()
    with progress(console(log), seconds=0.05) as update:
        for turn in range(2):
            update("validate", 0, 10, {})
            log.until(rf"(?s)(validate: 0/10, .*?so far.*?){{{turn + 1}}}")
            update("validate", 10, 10, {})
    assert log.getvalue().count("done in") == 2


@pytest.mark.parametrize("show", [lambda update: update("read", 0, 0, {}), lambda update: None])
def test_nothing_is_left_behind_by_an_error(show: Callable[..., None]) -> None:
    """The error comes through, and no line comes after it."""
    log = Log()

    def fail() -> None:
        with progress(console(log), seconds=0.01) as update:
            show(update)
            raise OSError

    with pytest.raises(OSError):  # noqa: PT011 - any that comes through
        fail()
    written = log.getvalue()
    time.sleep(0.05)
    assert log.getvalue() == written
    assert "done" not in written


def test_a_terminal_gets_bars() -> None:
    """One per stage, with count, rate and time; figures beside them."""
    file = io.StringIO()
    with progress(console(file, terminal=True)) as update:
        update("read", 0, 0, {})
        for done in (0, 500, 1000):
            update("train", done, 1000, {"loss": 0.25})
            time.sleep(0.02)
    last = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", file.getvalue()).splitlines()[-2:]
    assert re.match(r"read +━+ +0:00:00 +0:00:00", last[0])
    assert re.match(r"train +━+ 1,000/1,000 [\d,]+/s 0:00:00 0:00:00 loss 0\.2500", last[1])


def test_a_narrow_terminal_cuts_no_rate_and_no_time() -> None:
    """In 80 columns count, rate, and both times of an epoch of a million are whole."""
    shown = io.StringIO()
    with progress(console(shown, terminal=True, width=80)) as update:
        for done in (10_000, 450_000, 870_000):
            update("load histories", done, 900_000, {"loss": 0.5, "waited": 0.02})
            time.sleep(0.02)
    clock = r"\d:\d\d:\d\d"
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue())
    assert re.search(rf"870,000/900,000 [\d,]+/s {clock} {clock} ", text)

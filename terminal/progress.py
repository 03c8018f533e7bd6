"""Progress of a command, stage by stage: bars on a terminal, elsewhere a line every few seconds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

Update = Callable[[str, int, int, Mapping[str, float]], None]
SECONDS = 5.0


def quiet(stage: str, done: int, total: int, figures: Mapping[str, float]) -> None:
    """An `Update` that shows nothing."""


@contextmanager
def progress(console: Console, seconds: float = SECONDS) -> Iterator[Update]:
    """Stages as they go on: call the given function with (stage, done, total, figures).

    A total of 0 is not known: such a stage shows its time only, and ends where the next begins.
    A total may change. A stage whose name ends in ``(s)`` counts seconds, of which no rate is told.
    Where the console is no terminal, the stage under way is a plain line every ``seconds``.
    """
    stages = _Stages(console)
    over = threading.Event()
    ticks = threading.Thread(target=stages.tell_every, args=(seconds, over), daemon=True)
    if not console.is_interactive:
        ticks.start()
    try:
        yield stages.update
        stages.end()
    finally:
        over.set()
        if ticks.is_alive():
            ticks.join()
        stages.bars.stop()


class _Stages:
    """The stages so far, each a task of rich's, which keeps its speed and time left."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=12, table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[count]}"),
            _Rate(table_column=Column(no_wrap=True)),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            _Figures(),
            console=console,
            disable=not console.is_interactive,
        )
        self.tasks: dict[str, TaskID] = {}
        self.latest: Task | None = None
        self.told: set[TaskID] = set()  # stages a line of which was printed

    def update(self, stage: str, done: int, total: int, figures: Mapping[str, float]) -> None:
        self.bars.start()  # not before: an error that comes first is to be the only line
        if self.latest is not None and self.latest.description != stage:
            self.end()
        if stage not in self.tasks:
            self.tasks[stage] = self.bars.add_task(stage, total=total or None, count="", figures="")
        at = self.tasks[stage]
        self.latest = task = self.bars.tasks[at]
        if task.finished and done < total:
            self.bars.reset(at, total=total)
        if total:
            task.total = total  # `Progress.update` would forget the speed so far
        ended = task.finished
        count = f"{done:,}/{total:,}" if total else ""
        text = "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
        self.bars.update(at, completed=done, count=count, figures=text)
        if task.finished and not ended:
            self._tell_end(task)

    def end(self) -> None:
        """The latest stage is over, if its total was not known."""
        if self.latest is not None and self.latest.total is None:
            self.bars.update(self.latest.id, total=1, completed=1)
            self._tell_end(self.latest)

    def tell_every(self, seconds: float, over: threading.Event) -> None:
        """Print where the latest stage stands, until all is ``over``."""
        while not over.wait(seconds):
            if self.latest is not None and not self.latest.finished:
                self.told.add(self.latest.id)
                self._tell(self.latest)

    def _tell_end(self, task: Task) -> None:
        if task.id in self.told:
            self.told.remove(task.id)
            self._tell(task)

    def _tell(self, task: Task) -> None:
        self.console.print(_line(task), highlight=False, markup=False, soft_wrap=True)


class _Rate(ProgressColumn):
    """Units a second, where they are counted."""

    def render(self, task: Task) -> Text:
        return Text(_rate(task), style="progress.data.speed")


class _Figures(ProgressColumn):
    """What is cut where a terminal is narrow: in the only column that may shrink."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["figures"], no_wrap=True, overflow="ellipsis")


def _rate(task: Task) -> str:
    speed = task.finished_speed or task.speed
    if not speed or not task.fields["count"] or task.description.endswith("(s)"):
        return ""
    return f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.1f}/s"


def _line(task: Task) -> str:
    """``train: 51,200/900,000, 8,035/s, 0:00:06 so far, 0:01:46 left, loss 0.4321``."""
    parts = [task.fields["count"], _rate(task)]
    if task.finished:
        parts.append(f"done in {_clock(task.finished_time)}")
    else:
        parts.append(f"{_clock(task.elapsed)} so far")
        if task.time_remaining is not None:
            parts.append(f"{_clock(task.time_remaining)} left")
    parts.append(task.fields["figures"])
    return f"{task.description}: {', '.join(part for part in parts if part)}"


def _clock(seconds: float | None) -> str:
    return str(timedelta(seconds=round(seconds or 0)))

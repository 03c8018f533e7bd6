"""The supervisor: keeps several workers alive behind one door, and serves nothing itself."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from service import shared
from service.door import Door, bound
from service.drain import end_by
from service.settings import Settings
from service.worker import Place, work

_KILL_SECONDS = 1.0  # after the grace
_LONGEST_PAUSE = 30.0
_log = logging.getLogger(__name__)
_spawn = multiprocessing.get_context("spawn")


class SupervisorError(RuntimeError):
    """Why the workers can't serve, in words for the user."""


def supervise(settings: Settings) -> None:
    """Serve with ``settings.workers`` processes until SIGTERM or SIGINT; a second one ends this
    process by that signal.

    Raises `SupervisorError`.
    """
    with _opened(settings) as (listeners, folder):
        in_a_hurry = asyncio.run(Supervisor(settings, listeners, folder).run())
    if in_a_hurry:
        end_by(in_a_hurry)


class Supervisor:
    """Keeps a worker alive for each number below ``settings.workers``."""

    def __init__(self, settings: Settings, listeners: list[socket.socket], folder: Path) -> None:
        self._settings, self._folder = settings, folder
        self._door = Door(listeners)
        self._workers: dict[int, _Worker] = {}

    async def run(self) -> int:
        """Until a signal comes and all workers have ended; a second signal that came before, or 0.

        Raises `SupervisorError` when a worker's first start fails.
        """
        loop = asyncio.get_running_loop()
        signals: asyncio.Queue[int] = asyncio.Queue()
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(each, signals.put_nowait, each)
        numbers = range(self._settings.workers)
        keeping = [asyncio.create_task(self._keep(number)) for number in numbers]
        told = asyncio.create_task(signals.get())
        await asyncio.wait([told, *keeping], return_when=asyncio.FIRST_COMPLETED)
        pause = self._settings.drain_seconds if told.done() else 0.0
        for task in (told, *keeping):
            task.cancel()
        outcomes = await asyncio.gather(told, *keeping, return_exceptions=True)
        ending = asyncio.create_task(self._end(pause))
        again = asyncio.create_task(signals.get())
        await asyncio.wait([ending, again], return_when=asyncio.FIRST_COMPLETED)
        if not ending.done():
            for worker in self._workers.values():
                worker.kill()
        await ending
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        return again.result() if again.done() else 0

    async def _end(self, pause: float) -> None:
        """Have the workers drain while the door stays open, then finish what it has let in."""
        workers = self._workers.values()
        for worker in workers:
            worker.drain()
        ended = [asyncio.create_task(worker.ended()) for worker in workers]
        await asyncio.wait(ended, timeout=pause)
        self._door.shut()
        self._door.finish()
        left = self._settings.grace_seconds - pause + _KILL_SECONDS
        _, late = await asyncio.wait(ended, timeout=left)
        if late:
            _log.error("%d workers do not end and are killed", len(late))
            for worker in workers:
                worker.kill()
            await asyncio.wait(late)

    async def _keep(self, number: int) -> None:
        """Start a worker, and another one whenever it ends."""
        pause, first = 0.0, True
        while True:
            others = any(worker.hatch.serves for worker in self._workers.values())
            worker = _Worker(self._settings, number, self._folder, self._door, others)
            self._workers[number] = worker
            await worker.ended()
            shared.leave(self._folder, number)
            if first and not worker.hatch.served:
                raise SupervisorError(worker.trouble)
            _log.error("worker %d ended: %s", number, worker.trouble)
            # What fails before it serves would fail as soon again.
            pause = 0.0 if worker.hatch.served else min(_LONGEST_PAUSE, max(1.0, 2 * pause))
            first = False
            await asyncio.sleep(pause)


class _Worker:
    """A worker's process, seen from outside."""

    def __init__(
        self, settings: Settings, number: int, folder: Path, door: Door, others_serve: bool
    ) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            place = Place(number, theirs, folder, others_serve)
            self._process = _spawn.Process(target=work, args=(settings, place))
            self._process.start()
        self.hatch = door.hatch(ours)

    @property
    def trouble(self) -> str:
        """Why it ended."""
        return self.hatch.words or f"a worker's exit code is {self._process.exitcode}"

    async def ended(self) -> None:
        """Wait for its end."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(self._process.sentinel, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self._process.sentinel)
        self._process.join()
        self.hatch.hear()

    def drain(self) -> None:
        """Have it say that it is not ready, and finish once the door does."""
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


@contextmanager
def _opened(settings: Settings) -> Iterator[tuple[list[socket.socket], Path]]:
    """The sockets, and a folder for the workers' metrics. Raises `SupervisorError`."""
    with ExitStack() as opened:
        where = f"{settings.host} port {settings.port}"
        try:
            listeners = opened.enter_context(bound(settings.host, settings.port))
            where = "a folder for metrics"
            folder = opened.enter_context(TemporaryDirectory(prefix="dinserve-metrics-"))
        except OSError as error:
            raise SupervisorError(f"{where}: {error.strerror}") from None
        yield listeners, Path(folder)

"""Collect: the worker between the service's streams and the collected logs, put together."""

from __future__ import annotations

import json
import math
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError

from model.contract.repository import Repository
from model.contract.schema import Schema
from store.blocking import Clients
from store.url import StoreUrl
from training.collected import Collected, Writer, Written
from training.drain import Drain, Pace
from training.failed import Failed
from training.files import BusyError, Files
from training.guard import Band
from training.option import OptionError
from training.quality import Span, Window
from training.streams import Streams
from training.telemetry import Telemetry
from training.watch import Watch

SCHEMA = "schema.toml"
_SECONDS = 10.0  # that a command of Redis may take
_NAMED = 10  # unreadable entries, of a batch


class CollectError(ValueError):
    """Why nothing can be collected."""


@dataclass(frozen=True)
class Source:
    """Where the streams are, and as whom they are read."""

    url: str
    prefix: str
    consumer: str = field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}")


@dataclass(frozen=True)
class Shown:
    """Where metrics are told: on a port (0: any free one), in a file, or not at all."""

    host: str = "127.0.0.1"
    port: int | None = None
    file: Path | None = None

    def __bool__(self) -> bool:
        return self.port is not None or self.file is not None


@dataclass(frozen=True)
class Judged:
    """Of what live quality is measured, and where that of a canary may lie."""

    span: Span
    band: Band
    repository: Repository | None = None


def collect(
    source: Source,
    logs: Path,
    *,
    pace: Pace,
    once: bool,
    stop: threading.Event,
    shown: Shown,
    judged: Judged,
) -> None:
    """Drain the streams into the folder ``logs`` until stopped, or once.

    Live quality is measured when it is ``shown``, or when there is a repository, whose canary it is
    to guard. Raises `OptionError`, `CollectError`, `SchemaError`, and OSError when a file can't be
    written or the port is taken.
    """
    try:
        url = StoreUrl.parse(source.url)
    except ValueError as error:
        raise OptionError(f"--redis-url: {error}") from None
    repository = judged.repository
    schema = schema_of(logs, repository)
    files = Files(logs)
    with ExitStack() as stack:
        if not stack.enter_context(_alone(files, once, stop)):
            return
        clients = stack.enter_context(Clients(url, _SECONDS))
        streams = Streams(clients, source.prefix, source.consumer)
        telemetry = Telemetry()
        failed = Failed(clients, source.prefix)
        window = Window(schema, judged.span)
        watch = Watch(window, telemetry, repository, judged.band, tell, failed=failed)
        watching = bool(shown) or repository is not None
        if watching:
            watch.begin(Collected(logs))
        if shown.port is not None:
            port = stack.enter_context(telemetry.served(shown.host, shown.port))
            tell("metrics", port=port)

        def written(what: Written) -> None:
            _tell_written(what)
            telemetry.written(what)
            if watching:
                watch.written(what)

        def turn() -> None:
            telemetry.turned(streams.waiting())
            if watching:
                watch.turn()
            if shown.file is not None:
                try:
                    telemetry.save(shown.file)
                except OSError as error:  # no reason to stop collecting
                    tell("metrics_file_failed", error=str(error))

        drain = Drain(
            streams=streams,
            writer=Writer(files, schema.ts_unit),
            pace=pace,
            stop=stop,
            tell=tell,
            written=written,
            turn=turn,
        )
        tell("started", consumer=source.consumer)
        if once:
            try:
                drain.once()
            except RedisError as error:
                raise CollectError(f"Redis: {error}") from error
        else:
            drain.run()
        tell("ended")


def schema_of(logs: Path, repository: Repository | None) -> Schema:
    """The schema the logs follow: that of base/, else of the newest version. Raises `CollectError`
    and `SchemaError`."""
    places = [Collected(logs).base / SCHEMA]
    if repository is not None:
        places += [repository.folder / str(n) / SCHEMA for n in repository.versions()[-1:]]
    for path in places:
        if path.exists():
            return Schema.load(path)
    raise CollectError(
        f"{logs}: no base/{SCHEMA} there, and no version in a --repository, to say what a ts is"
    )


def tell(event: str, **figures: Any) -> None:
    """One line of JSON on standard output."""
    instant = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    sound = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in figures.items()
    }
    line = {"time": instant, "event": event, **sound}
    print(json.dumps(line, ensure_ascii=False), flush=True, file=sys.stdout)


@contextmanager
def _alone(files: Files, once: bool, stop: threading.Event) -> Iterator[bool]:
    """Be the only writer, if need be after another; False when stopped before."""
    held = waited = False
    with ExitStack() as stack:
        while not held and not stop.is_set():
            try:
                stack.enter_context(files.alone())
                held = True
            except BusyError as error:
                if once:
                    raise CollectError(str(error)) from None
                if not waited:
                    tell("waiting_for_another_collector")
                waited = True
                stop.wait(1.0)
        yield held


def _tell_written(written: Written) -> None:
    counts = {kind: len(rows) for kind, rows in written.new.items()}
    known, removed = sum(written.known.values()), sum(written.removed.values())
    tell("written", **counts, known=known, removed=removed)
    for row in written.new["unreadable"].head(_NAMED).iter_rows(named=True):
        place = {name: row[name] for name in ("partition", "entry", "why")}
        tell("unreadable", **place)

"""The registry: which model version is served, and when a newer one takes over.

It looks at a repository folder every so often. A version is served only after its digests, its
encoding of the golden requests and its golden scores were checked on this machine's engine and it
was warmed up; a version that fails is remembered, and the one in service stays. Requests hold on
to the version they began with.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from model.contract.bundle import MANIFEST, Bundle, BundleError
from model.contract.encode import Encoder
from model.contract.repository import Repository, RepositoryError
from model.contract.schema import Schema
from service.engine import Engine, EngineError, warm_up
from service.telemetry import Telemetry

OpenEngine = Callable[[Path], Engine]
Stamp = tuple[int, int, int]
TOLERANCE = {"cpu": 1e-4, "cuda": 1e-3}
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Version:
    """A verified, warm model."""

    name: str
    number: int
    bundle: Bundle
    engine: Engine
    stamp: Stamp

    @property
    def schema(self) -> Schema:
        return self.bundle.schema

    @property
    def encoder(self) -> Encoder:
        return self.bundle.encoder


def verify(repository: Repository, number: int, open_engine: OpenEngine) -> Version:
    """Open a version and check it on its engine. Raises `BundleError` or `EngineError`."""
    try:
        stamp = _stamp(repository, number)
        bundle = repository.open(number)
        bundle.check_encoding()
        engine = open_engine(bundle.graph)
        bundle.check_scores(lambda batch: engine.run(batch).logit, TOLERANCE[engine.provider])
        warm_up(engine, bundle.schema)
    except (BundleError, EngineError):
        raise
    except Exception as error:  # whatever a bundle holds, it must not end the service
        raise BundleError(f"{type(error).__name__}: {error}") from error
    return Version(repository.name, number, bundle, engine, stamp)


class Registry:
    """Serves the newest valid version of a model; `watch` keeps it so."""

    def __init__(
        self, root: Path, name: str | None, *, open_engine: OpenEngine, telemetry: Telemetry
    ) -> None:
        self._root, self._name = root, name
        self._open_engine, self._telemetry = open_engine, telemetry
        self._refused: dict[tuple[str, int], Stamp] = {}
        self._trouble = "no version was looked for yet"
        self._current: Version | None = None

    @property
    def current(self) -> Version | None:
        """The version in service."""
        return self._current

    @property
    def trouble(self) -> str:
        """Why there is no version in service."""
        return self._trouble

    @property
    def refused(self) -> int:
        """How many versions are known to be bad."""
        return len(self._refused)

    async def watch(self, every: float) -> None:
        """Look for a newer version, for ever."""
        while True:
            await self.renew()
            await asyncio.sleep(every)

    async def renew(self) -> None:
        """Look for a newer version, off the event loop, and switch to it."""
        try:
            found = await asyncio.to_thread(self.look)
        except Exception:
            _log.exception("looking for versions failed")
        else:
            if found is not None:
                self.take(found)

    def look(self) -> Version | None:
        """The newest valid version when it is not the one in service. Does not switch."""
        try:
            # A model in service is never replaced by another one.
            named = self._name if self._current is None else self._current.name
            repository = Repository.find(self._root, named)
            numbers = repository.versions()
        except (RepositoryError, OSError) as error:
            self._explain(str(error))
            return None
        if not numbers:
            self._explain(f"{repository.name}: no version is published")
        for number in reversed(numbers):
            try:
                stamp = _stamp(repository, number)
            except OSError:  # just removed
                continue
            current = self._current
            if current is not None and (current.name, current.number, current.stamp) == (
                repository.name,
                number,
                stamp,
            ):
                return None
            if self._refused.get((repository.name, number)) == stamp:
                continue
            try:
                return verify(repository, number, self._open_engine)
            except (BundleError, EngineError) as error:
                if _passing(error.__cause__):  # nothing is wrong with the version; try again
                    self._explain(f"version {number} can't be opened now: {error}")
                    return None
                self._refused[repository.name, number] = stamp
                self._telemetry.refused.labels(repository.name).inc()
                self._trouble = f"version {number} refused: {error}"
                _log.error("%s version %d refused: %s", repository.name, number, error)
        return None

    def take(self, version: Version) -> None:
        """Switch: requests that come from now on are scored by it."""
        first = self._current is None
        self._current = version
        self._telemetry.version.labels(version.name).set(version.number)
        self._telemetry.swaps.inc()
        _log.info(
            "serving %s version %d on %s", version.name, version.number, version.engine.provider
        )
        if first:
            # What lives for ever need not be walked by each collection: no pause of tens of ms.
            gc.collect()
            gc.freeze()

    def _explain(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            _log.warning("no new version: %s", trouble)


def _passing(cause: BaseException | None) -> bool:
    """Whether the machine, not the version, was short of something."""
    short = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
    return isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno in short)


def _stamp(repository: Repository, number: int) -> Stamp:
    found = (repository.folder / str(number) / MANIFEST).stat()
    return found.st_mtime_ns, found.st_size, found.st_ino

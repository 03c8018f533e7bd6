"""The shelf: the versions of a repository as they prove themselves here, each looked at once.

A version that fails is remembered with why, until another bundle lies at its place.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable

from model.contract.bundle import BundleError
from model.contract.repository import Repository
from service.engine import EngineError
from service.recorded import Recorded
from service.telemetry import Telemetry
from service.verify import OpenEngine, Stamp, Version, stamp_of, verify

_log = logging.getLogger(__name__)


class BusyError(RuntimeError):
    """The machine, not the version, was short of something: to be tried again."""


class Shelf:
    """Opens versions of repositories, and knows those that it refused."""

    def __init__(
        self,
        open_engine: OpenEngine,
        telemetry: Telemetry,
        recorded: Recorded,
        max_bytes: int | None = None,
    ) -> None:
        self._open_engine, self._telemetry = open_engine, telemetry
        self._recorded, self._max_bytes = recorded, max_bytes
        self._refused: dict[tuple[str, int], tuple[Stamp, str]] = {}

    @property
    def refused(self) -> int:
        """How many versions are known to be bad."""
        return len(self._refused)

    def why_not(self, repository: Repository, number: int) -> str:
        """Why a version that `get` did not give is refused, its reason first."""
        return self._refused.get((repository.name, number), (None, "it was just removed"))[1]

    def get(self, repository: Repository, number: int, loaded: Iterable[Version]) -> Version | None:
        """A version, proved: the one of those ``loaded`` where it is that. None for a bad one.

        Raises `BusyError`.
        """
        try:
            stamp = stamp_of(repository, number)
        except OSError:  # just removed
            return None
        for version in loaded:
            if (version.name, version.number, version.stamp) == (repository.name, number, stamp):
                return version
        place = (repository.name, number)
        if place in self._refused and self._refused[place][0] == stamp:
            return None
        try:
            return verify(
                repository,
                number,
                self._open_engine,
                max_bytes=self._max_bytes,
                recorded=self._recorded.samples(),
            )
        except (BundleError, EngineError) as error:
            if _passing(error.__cause__):
                raise BusyError(f"version {number} can't be opened now: {error}") from error
            self._refused[place] = (stamp, f"{error.reason}: {error}")
            self._telemetry.refused.labels(repository.name, error.reason).inc()
            _log.error(
                "%s version %d refused: %s (%s)", repository.name, number, error, error.reason
            )
            return None


def _passing(cause: BaseException | None) -> bool:
    """Whether the machine was short of something."""
    short = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
    return isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno in short)

"""The registry: follows the versions and labels of a repository, and says which are in service.

It looks at the repository's folder every so often. A version is served only after `verify` proved
it here; a version that fails is remembered with why, and what is in service stays. A switch is
one assignment: requests hold on to the versions they began with, and a version is released when
the last of them ends.

Which version is stable: the one labelled so; where none is, the newest valid one. A service that
starts and finds the labelled one broken takes those that were stable before, the latest first, and
no other: what nobody has vetted is never served because something else broke.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from model.contract.labels import LabelError, LabelFile, Labels, Withdrawal
from model.contract.repository import Repository, RepositoryError
from service.background import background
from service.errors import Unavailable
from service.lineup import Lineup
from service.recorded import Recorded
from service.shelf import BusyError, Shelf
from service.telemetry import Telemetry
from service.trial import Trial
from service.verify import OpenEngine, Version

BAND, LEAST = 0.02, 200
Tell = Callable[[str, Withdrawal], Awaitable[None]]
_log = logging.getLogger(__name__)


class Registry:
    """The versions in service; `watch` keeps them as the labels say.

    ``tell`` is given the model's name and a canary that failed where the labels can't be written
    here, for whoever can, time and again until they have changed; it may raise `Unavailable`.
    """

    def __init__(
        self,
        root: Path,
        name: str | None,
        *,
        open_engine: OpenEngine,
        telemetry: Telemetry,
        recorded: Recorded | None = None,
        trial: Trial | None = None,
        max_bytes: int | None = None,
        tell: Tell | None = None,
    ) -> None:
        self._root, self._name = root, name
        self._telemetry = telemetry
        self._shelf = Shelf(open_engine, telemetry, recorded or Recorded(), max_bytes)
        self._trial = trial or Trial(BAND, LEAST)
        self._trouble = "no version was looked for yet"
        self._told: set[str] = set()
        self._pool = background("versions")
        self._lineup: Lineup | None = None
        self._tell_others = tell
        # A canary that failed here: it gets no traffic until the labels change.
        self._withdrawn: Withdrawal | None = None
        self._read_only = False

    @property
    def lineup(self) -> Lineup | None:
        """The versions in service."""
        return self._lineup

    @property
    def current(self) -> Version | None:
        """The stable version in service."""
        return None if self._lineup is None else self._lineup.stable

    @property
    def trouble(self) -> str:
        """Why there is no version in service, or not the one that the labels say."""
        return self._trouble

    @property
    def refused(self) -> int:
        """How many versions are known to be bad."""
        return self._shelf.refused

    async def watch(self, every: float) -> None:
        """Follow the repository, for ever."""
        while True:
            await self.renew()
            await asyncio.sleep(every)

    async def renew(self) -> None:
        """Look at the repository, off the event loop, and switch to what it says."""
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._pool, self.look)
        except Exception:
            _log.exception("looking for versions failed")
        else:
            if found is not None:
                self.take(found)
        await self._hand_over()

    def look(self) -> Lineup | None:
        """What should be in service when it is not what is. Does not switch."""
        try:
            # A model in service is never replaced by another one.
            current = self.current
            named = self._name if current is None else current.name
            repository = Repository.find(self._root, named)
            numbers = repository.versions()
            labels = self._labels(repository)
        except (RepositoryError, LabelError, OSError) as error:
            self._explain(str(error), broken=isinstance(error, LabelError))
            return None
        if not numbers:
            self._explain(f"{repository.name}: no version is published")
        stable = self._stable(repository, numbers, labels)
        if stable is None:
            return None
        canary = self._labelled(repository, numbers, labels.canary)
        shadow = self._labelled(repository, numbers, labels.shadow)
        wanted = (
            (labels.stable, stable),
            (labels.canary, canary),
            (labels.shadow, shadow),
        )
        followed = all(
            number is None or (version is not None and version.number == number)
            for number, version in wanted
        )
        self._telemetry.labels_broken.set(not followed)
        if followed and numbers:  # else what was there is served on, and why is said once
            self._trouble = ""
            self._told.clear()
        found = self._allowed(
            Lineup(
                stable,
                canary,
                labels.canary_share if canary else 0.0,
                labels.canary_since,
                shadow,
                labels.shadow_share if shadow else 0.0,
            )
        )
        return None if found.same(self._lineup) else found

    def take(self, found: Lineup) -> None:
        """Switch: requests that come from now on are scored by it."""
        before, now = self._lineup, self._allowed(found)
        self._lineup = now
        if before is None or (before.canary, before.canary_since) != (now.canary, now.canary_since):
            self._trial.clear()
        self._tell(before, now)
        if before is None:
            # What lives for ever need not be walked by each collection: no pause of tens of ms.
            gc.collect()
            gc.freeze()

    def report(self, version: Version, *, failed: bool) -> None:
        """How a request ended for a version. A canary that fails too often loses its traffic at
        once; the labels are told with the next look."""
        lineup = self._lineup
        if lineup is None or lineup.canary is None or not lineup.canary_share:
            return
        canary = version is lineup.canary
        if not canary and version is not lineup.stable:
            return
        self._trial.note(canary=canary, failed=failed)
        why = self._trial.verdict() if canary and failed else None
        if why is not None:
            number = lineup.canary.number
            self._withdrawn = Withdrawal(number, lineup.canary_since, why)
            self._telemetry.withdrawn.labels(version.name).inc()
            _log.error("%s canary version %d withdrawn: %s", version.name, number, why)
            self.take(replace(lineup, canary_share=0.0))

    def _labels(self, repository: Repository) -> Labels:
        """The labels, told of a canary that failed here. Raises `LabelError`."""
        file = LabelFile(repository, by="service")
        labels = file.read()
        withdrawn = self._withdrawn
        if withdrawn is None:
            return labels
        if not withdrawn.of(labels):  # someone has decided otherwise
            self._withdrawn, self._read_only = None, False
            return labels
        try:
            labels = file.withdraw(withdrawn)
        except OSError as error:  # tried again with the next look: the disk may be full for now
            if not self._read_only:
                _log.warning("the labels can't be written here: %s", error.strerror)
            self._read_only = True
        else:
            self._withdrawn, self._read_only = None, False
        return labels

    async def _hand_over(self) -> None:
        """Tell others of a canary that failed here, where only they can write the labels; with each
        look, since Redis may forget."""
        withdrawn, current = self._withdrawn, self.current
        if withdrawn and current and self._read_only and self._tell_others:
            with suppress(Unavailable):
                await self._tell_others(current.name, withdrawn)

    def _allowed(self, lineup: Lineup) -> Lineup:
        """Without traffic for a canary that was withdrawn here."""
        canary, failed = lineup.canary, self._withdrawn
        if canary is None or failed is None:
            return lineup
        same = (canary.number, lineup.canary_since) == (failed.version, failed.since)
        return replace(lineup, canary_share=0.0) if same else lineup

    def _stable(
        self, repository: Repository, numbers: Collection[int], labels: Labels
    ) -> Version | None:
        """The version to be stable; None where there is no valid one."""
        current = self.current
        if labels.stable is None:
            return self._newest(repository, numbers) or current
        found = self._labelled(repository, numbers, labels.stable)
        if found is not None or current is not None:
            return found or current
        before = (self._labelled(repository, numbers, number) for number in labels.previous)
        return next((version for version in before if version is not None), None)

    def _newest(self, repository: Repository, numbers: Collection[int]) -> Version | None:
        """The newest valid version; None also when one can't be opened now."""
        for number in sorted(numbers, reverse=True):
            try:
                found = self._shelf.get(repository, number, self._loaded())
            except BusyError as error:
                self._explain(str(error))
                return None
            if found is not None:
                return found
            self._trouble = f"version {number} refused: {self._shelf.why_not(repository, number)}"
        return None

    def _labelled(
        self, repository: Repository, numbers: Collection[int], number: int | None
    ) -> Version | None:
        """A labelled version; None where it is not there, bad, or can't be opened now."""
        if number is None:
            return None
        if number not in numbers:
            self._explain(f"version {number} has a label and is not there", broken=True)
            return None
        try:
            found = self._shelf.get(repository, number, self._loaded())
        except BusyError as error:
            self._explain(str(error))
            return None
        if found is None:
            why = self._shelf.why_not(repository, number)
            self._explain(f"version {number} has a label and is refused: {why}", broken=True)
        return found

    def _loaded(self) -> list[Version]:
        return [] if self._lineup is None else self._lineup.versions()

    def _tell(self, before: Lineup | None, now: Lineup) -> None:
        """Metrics and log lines of a switch."""
        telemetry, name = self._telemetry, now.stable.name
        telemetry.version.labels(name).set(now.stable.number)
        telemetry.created.labels(name).set(now.stable.created)
        for label in ("canary", "shadow"):
            version, share = getattr(now, label), getattr(now, f"{label}_share")
            telemetry.beside.labels(name, label).set(version.number if version else 0)
            telemetry.share.labels(name, label).set(share)
            was = (None, 0.0)
            if before is not None:
                was = (getattr(before, label), getattr(before, f"{label}_share"))
            if was != (version, share):
                number = version.number if version else "none"
                _log.info("%s %s version %s, share %s", name, label, number, share)
        if before is None or before.stable is not now.stable:
            telemetry.swaps.inc()
            provider = now.stable.engine.provider
            _log.info("serving %s version %d on %s", name, now.stable.number, provider)

    def _explain(self, trouble: str, *, broken: bool = False) -> None:
        if broken:
            self._telemetry.labels_broken.set(1)
        self._trouble = trouble
        if trouble not in self._told:  # once, not with every look
            self._told.add(trouble)
            what = "the labels are not followed" if broken else "no new version"
            _log.warning("%s: %s", what, trouble)

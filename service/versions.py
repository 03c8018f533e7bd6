"""The versions of a model as its operators see and label them: listed, and checked before they get
a label exactly as the service checks them, on the CPU. The command line and the admin API are two
ways to say the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from model.contract.bundle import MANIFEST, BundleError
from model.contract.labels import LabelError, LabelFile, Labels, UnpublishedError
from model.contract.repository import Repository, RepositoryError
from service.engine import Engine, EngineError, OnnxEngine
from service.settings import Settings
from service.verify import Stamp, stamp_of, verify


class RefusedError(ValueError):
    """A version that can't be served, and why: in words, and as one of the `Reason`s."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Facts:
    """What a version is; ``reason`` and ``trouble`` say why it can't be served, None when it can.

    ``made`` is when, in seconds since 1970: a copy of it, as on another machine, is no younger.
    """

    made: float
    reason: str | None = None
    trouble: str | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    lineage: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Listed:
    """A version with its labels, its share of the traffic and of the shadowed requests, 0 to 1."""

    version: int
    labels: tuple[str, ...]
    traffic: float
    shadow: float
    facts: Facts

    def document(self, now: float) -> dict[str, Any]:
        """As JSON; its age is in seconds."""
        facts = asdict(self.facts)
        age = max(0.0, now - facts.pop("made"))
        return {
            "version": self.version,
            "labels": list(self.labels),
            "age_seconds": round(age),
            "traffic": self.traffic,
            "shadow": self.shadow,
            **facts,
        }


class Versions:
    """Lists and labels the versions of a repository. ``by`` is who does it, in the log of changes.

    Everything that labels raises `LabelError`, OSError where the repository can't be written, and
    `RefusedError` for a version that can't be served.
    """

    def __init__(self, repository: Repository, by: str, max_bytes: int | None = None) -> None:
        self.repository, self.file = repository, LabelFile(repository, by)
        self._max_bytes = max_bytes
        self._known: dict[int, tuple[Stamp, Facts]] = {}

    @classmethod
    def of(cls, settings: Settings, by: str) -> Versions:
        """Those of the settings' model. Raises `RepositoryError`."""
        repository = Repository.find(settings.repository, settings.name)
        if not repository.versions():
            raise RepositoryError(f"{repository.folder}: no version is published")
        return cls(repository, by, settings.max_bundle_bytes)

    def labels(self) -> Labels:
        """The labels now. Raises `LabelError`."""
        return self.file.read()

    def listed(self) -> list[Listed]:
        """All versions, the newest first. Raises `LabelError`."""
        labels = self.labels()
        facts = {number: self.facts(number) for number in self.repository.versions()}
        stable = labels.stable
        if stable is None:
            stable = max((n for n, each in facts.items() if each.reason is None), default=None)
        listed = []
        for number in sorted(facts, reverse=True):
            marks = ("stable",) if number == stable else labels.of(number)
            traffic = 1 - labels.canary_share if number == stable else 0.0
            traffic += labels.canary_share if number == labels.canary else 0.0
            shadow = labels.shadow_share if number == labels.shadow else 0.0
            listed.append(Listed(number, marks, traffic, shadow, facts[number]))
        return listed

    def facts(self, number: int) -> Facts:
        """What a version is. Verified once, as long as the same bundle lies there."""
        try:
            stamp = stamp_of(self.repository, number)
        except OSError as error:
            return Facts(0.0, "manifest", f"{MANIFEST}: {error.strerror}")
        known = self._known.get(number)
        if known is None or known[0] != stamp:
            known = self._known[number] = (stamp, self._verified(number, stamp[0] / 1e9))
        return known[1]

    def _verified(self, number: int, written: float) -> Facts:
        try:
            version = verify(self.repository, number, _on_cpu, max_bytes=self._max_bytes)
        except (BundleError, EngineError) as error:
            return Facts(written, error.reason, str(error))
        manifest = version.bundle.manifest
        return Facts(version.created, metrics=manifest["metrics"], lineage=manifest["lineage"])

    def served(self, labels: Labels) -> int | None:
        """The version that is served: the stable one, else the newest valid one, if any."""
        return labels.stable if labels.stable is not None else self._newest()

    def check(self, number: int) -> None:
        """Raises `UnpublishedError` and `RefusedError`."""
        if number not in self.repository.versions():
            raise UnpublishedError(f"version {number} is not published")
        facts = self.facts(number)
        if facts.reason is not None:
            raise RefusedError(f"version {number} refused: {facts.trouble}", facts.reason)

    def promote(self, number: int, why: str = "") -> Labels:
        """Make a version the stable one."""
        self.check(number)
        return self.file.promote(number, why)

    def rollback(self, why: str = "") -> Labels:
        """Make the stable version before this one stable again."""
        labels = self.labels()
        served = self.served(labels)
        target = self.file.before(labels, served)
        self.check(target)
        return self.file.rollback(why, to=target, served=served)

    def pin(self, number: int, why: str = "") -> Labels:
        """Make a version stable for all traffic, and hold it."""
        self.check(number)
        return self.file.pin(number, why)

    def canary(self, number: int, share: float, why: str = "") -> Labels:
        """Give a version a share of the users, beside a stable one."""
        self.check(number)
        self._settle(number)
        return self.file.start_canary(number, share, why)

    def shadow(self, number: int, share: float, why: str = "") -> Labels:
        """Score a version beside the stable one on a share of the requests."""
        self.check(number)
        self._settle(number)
        return self.file.start_shadow(number, share, why)

    def _settle(self, beside: int) -> None:
        """Where no version is labelled stable, make the newest valid other one so."""
        if self.labels().stable is not None:
            return
        valid = self._newest(beside)
        if valid is None:
            raise LabelError(f"there is no other version to be stable beside {beside}")
        self.file.settle(valid, f"version {beside} is put beside it")

    def _newest(self, beside: int | None = None) -> int | None:
        """The newest valid version but ``beside``: it is served where none is labelled stable."""
        numbers = [number for number in self.repository.versions() if number != beside]
        return next((n for n in reversed(numbers) if self.facts(n).reason is None), None)


def _on_cpu(graph: Path) -> Engine:
    return OnnxEngine.open(graph, "cpu")

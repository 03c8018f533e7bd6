"""The labels: which versions of a model are stable, canary and shadow, and what share they get.

They are one small JSON file beside the versions, ``<root>/<name>/labels.json``, replaced as a whole
under a lock: a reader sees the labels before a change or after it, and whenever a
writer is killed nothing is half done. Without the file, and while ``stable`` is null, the newest
valid version is the stable one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from model.contract.bundle import sync
from model.contract.repository import Repository

FORMAT = 1
LABELS = "labels.json"
MAX_CHANGES = 100
MAX_PREVIOUS = 20
_NEXT = ".labels.json"
_LOCK = ".labels.lock"  # its own: a rollback must not wait until someone has published
_VERSIONS = ("stable", "canary", "shadow")
_SHARES = ("canary_share", "shadow_share")


class LabelError(ValueError):
    """Labels that can't be read or changed as asked, and why."""


class UnpublishedError(LabelError):
    """No such version is published."""


class PinnedError(LabelError):
    """The stable version is pinned: it is changed by nothing but `pin` and `unpin`."""


class MovedError(LabelError):
    """Another version has become stable than the caller had looked at."""


@dataclass(frozen=True)
class Change:
    """One change of the labels: when (ISO 8601, UTC), what, by whom, why."""

    at: str
    what: str
    by: str
    why: str


@dataclass(frozen=True)
class Labels:
    """What a repository's versions are for; None is no version, shares are 0 to 1.

    ``previous`` are the versions that were stable before, the latest first; ``changes`` are the
    last `MAX_CHANGES`, the latest last. Raises `LabelError` for labels that contradict themselves.
    """

    stable: int | None = None
    canary: int | None = None
    canary_share: float = 0.0
    shadow: int | None = None
    shadow_share: float = 0.0
    pinned: bool = False
    previous: tuple[int, ...] = ()
    changes: tuple[Change, ...] = ()

    def __post_init__(self) -> None:
        for name in _SHARES:
            share = getattr(self, name)
            if not math.isfinite(share) or not 0 <= share <= 1:
                raise LabelError(f"{name}: expected 0 to 1")
        for name in ("canary", "shadow"):
            version = getattr(self, name)
            if version is None and getattr(self, f"{name}_share"):
                raise LabelError(f"{name}_share: there is no {name}")
            if version is not None and self.stable is None:
                raise LabelError(f"{name}: needs a stable version beside it")
            if version is not None and version == self.stable:
                raise LabelError(f"{name}: version {version} is the stable one")
        if self.pinned and (self.stable is None or self.canary is not None):
            raise LabelError("pinned: needs a stable version, and no canary")

    @property
    def canary_since(self) -> str:
        """When the canary or its share was changed last; "" where nothing says so any more."""
        return next((each.at for each in reversed(self.changes) if "canary" in each.what), "")

    def of(self, version: int) -> tuple[str, ...]:
        """The labels that a version has."""
        return tuple(name for name in _VERSIONS if getattr(self, name) == version)

    def with_stable(self, version: int | None) -> Labels:
        """With another stable version, which is then neither canary nor shadow any more.

        What was stable is remembered. Without a stable version there is no canary nor shadow.
        """
        if version == self.stable:
            return self
        found = self
        if version is None or version == self.canary:
            found = replace(found, canary=None, canary_share=0.0)
        if version is None or version == self.shadow:
            found = replace(found, shadow=None, shadow_share=0.0)
        latest = (self.stable,) if self.stable is not None else ()
        kept = [each for each in (*latest, *self.previous) if each != version]
        previous = tuple(dict.fromkeys(kept))[:MAX_PREVIOUS]
        return replace(found, stable=version, previous=previous)


@dataclass(frozen=True)
class Withdrawal:
    """A canary that failed, and how; its share is to become 0 unless the labels say something else
    of the canary by now. ``since`` is their `Labels.canary_since` of when it had its traffic."""

    version: int
    since: str
    why: str

    @classmethod
    def parse(cls, text: str | bytes) -> Withdrawal:
        """From `described`. Raises `LabelError`."""
        try:
            found = cls(**json.loads(text))
        except (ValueError, TypeError, RecursionError):
            raise LabelError("no description of a withdrawal") from None
        _expect(_is_version(found.version), "version", "a version")
        _expect(isinstance(found.since, str), "since", "text")
        _expect(isinstance(found.why, str), "why", "text")
        return found

    @property
    def described(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    def of(self, labels: Labels) -> bool:
        """Whether the labels still give it the traffic that they gave it then."""
        return (labels.canary, labels.canary_since) == (self.version, self.since)


@dataclass(frozen=True)
class LabelFile:
    """The labels of one model on disk, and every way to change them.

    ``by`` says in the log of changes who did it. Every change returns the labels after it, raises
    `LabelError` when it can't be done and OSError where the folder can't be written; whether a
    version is fit to be served is for the caller to find out first.
    """

    repository: Repository
    by: str

    @property
    def path(self) -> Path:
        return self.repository.folder / LABELS

    def read(self) -> Labels:
        """The labels now. Raises `LabelError`."""
        return read(self.path)

    def promote(
        self, version: int, why: str = "", over: Collection[int | None] | None = None
    ) -> Labels:
        """Make a version the stable one, and remember the one before. Raises `PinnedError`.

        ``over``: one of these is expected to be the stable version now; else raises `MovedError`.
        """
        self._published(version)

        def step(labels: Labels) -> Labels:
            _over(labels, over)
            return _unpinned(self._settled(labels, version)).with_stable(version)

        return self._change(step, why)

    def rollback(self, why: str = "", to: int | None = None, served: int | None = None) -> Labels:
        """Make the stable version before this one stable again. Raises `PinnedError`.

        ``to`` is the version that the caller expects it to be and has looked at; ``served`` as in
        `before`.
        """

        def step(labels: Labels) -> Labels:
            target, *older = self._before(labels, served)
            if to is not None and to != target:
                raise LabelError(f"version {to} is not the one before; the labels have changed")
            # What is rolled back is not remembered, so that the next rollback goes further back.
            return replace(labels.with_stable(target), previous=tuple(older)[:MAX_PREVIOUS])

        return self._change(step, why)

    def before(self, labels: Labels, served: int | None = None) -> int:
        """The version that a rollback makes stable. Raises `LabelError` where there is none, and
        `PinnedError`.

        Where none is labelled stable it is the one below what is ``served``, by default the newest.
        """
        return self._before(labels, served)[0]

    def _before(self, labels: Labels, served: int | None) -> list[int]:
        """The versions that rollbacks make stable, one after the other."""
        _unpinned(labels)
        versions = self.repository.versions()
        known: Sequence[int] = labels.previous
        if labels.stable is None:  # each was stable while it was the newest
            newest = max(versions, default=0) if served is None else served
            known = [each for each in reversed(versions) if each < newest]
        found = [each for each in known if each in versions]
        if not found:
            raise LabelError("no version was stable before this one")
        return found

    def pin(self, version: int, why: str = "") -> Labels:
        """Make a version stable for all traffic and hold it: the canary ends, and until `unpin`
        no other version becomes stable or canary."""
        self._published(version)

        def step(labels: Labels) -> Labels:
            found = self._settled(labels, version).with_stable(version)
            return replace(found, canary=None, canary_share=0.0, pinned=True)

        return self._change(step, why)

    def unpin(self, why: str = "") -> Labels:
        """Release a pinned version; it stays the stable one."""
        return self._change(lambda labels: replace(labels, pinned=False), why)

    def follow(self, why: str = "") -> Labels:
        """Have the newest valid version be the stable one, as without labels.

        Canary and shadow end. Raises `PinnedError`.
        """
        return self._change(lambda labels: _unpinned(labels).with_stable(None), why)

    def settle(self, version: int | None = None, why: str = "") -> Labels:
        """Make a version, by default the newest, stable where none is, so that what is published
        next is not served by itself. Where nothing is published nothing changes."""
        versions = self.repository.versions()
        if not versions:
            return self.read()
        chosen = versions[-1] if version is None else version
        self._published(chosen)

        def step(labels: Labels) -> Labels:
            return labels if labels.stable is not None else labels.with_stable(chosen)

        return self._change(step, why)

    def start_canary(
        self,
        version: int,
        share: float,
        why: str = "",
        over: Collection[int | None] | None = None,
    ) -> Labels:
        """Give a version that is not stable a share of the traffic, 0 to 1; also changes the share.

        Where no version is stable, the newest other one becomes it. Raises `PinnedError`, and
        `MovedError` as `promote` does.
        """
        self._published(version)

        def step(labels: Labels) -> Labels:
            _over(labels, over)
            found = self._settled(_unpinned(labels), version)
            return replace(found, canary=version, canary_share=share)

        return self._change(step, why)

    def withdraw(self, withdrawal: Withdrawal) -> Labels:
        """Set the share of a canary to 0. Changes nothing where the labels have changed since."""

        def step(labels: Labels) -> Labels:
            return replace(labels, canary_share=0.0) if withdrawal.of(labels) else labels

        return self._change(step, withdrawal.why)

    def stop_canary(self, why: str = "") -> Labels:
        """End the canary."""
        return self._change(lambda labels: replace(labels, canary=None, canary_share=0.0), why)

    def start_shadow(self, version: int, share: float, why: str = "") -> Labels:
        """Have a version scored beside the stable one on a share of the requests, 0 to 1.

        Where no version is stable, the newest other one becomes it.
        """
        self._published(version)

        def step(labels: Labels) -> Labels:
            return replace(self._settled(labels, version), shadow=version, shadow_share=share)

        return self._change(step, why)

    def stop_shadow(self, why: str = "") -> Labels:
        """End the shadow."""
        return self._change(lambda labels: replace(labels, shadow=None, shadow_share=0.0), why)

    def _settled(self, labels: Labels, version: int) -> Labels:
        """With the newest version but ``version`` stable, where none is labelled so."""
        if labels.stable is not None:
            return labels
        others = [each for each in self.repository.versions() if each != version]
        return labels.with_stable(others[-1]) if others else labels

    def _published(self, version: int) -> None:
        if version not in self.repository.versions():
            raise UnpublishedError(f"version {version} is not published")

    def _change(self, step: Callable[[Labels], Labels], why: str) -> Labels:
        if not self.repository.versions():
            raise LabelError(f"{self.repository.name}: no version is published")
        with self.repository.alone(_LOCK):
            before = self.read()
            after = step(before)
            what = _difference(before, after)
            if not what:
                return before
            change = Change(
                datetime.now(UTC).isoformat(timespec="microseconds"), what, self.by, why
            )
            after = replace(after, changes=(*before.changes, change)[-MAX_CHANGES:])
            _write(self.path, after)
            return after


def read(path: Path) -> Labels:
    """The labels in a file; those of no file are the default. Raises `LabelError`."""
    try:
        stored = json.loads(path.read_bytes())
    except FileNotFoundError:
        return Labels()
    except (OSError, ValueError, RecursionError) as error:
        raise LabelError(f"{LABELS}: unreadable ({type(error).__name__})") from error
    try:
        return _parse(stored)
    except LabelError as error:
        raise LabelError(f"{LABELS}: {error}") from None


def _parse(stored: Any) -> Labels:
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        raise LabelError(f"format: expected {FORMAT}")
    given = {name: value for name, value in stored.items() if name != "format"}
    if given.keys() != {each.name for each in fields(Labels)}:
        raise LabelError("expected the fields of format 1, no more and no fewer")
    for name in _VERSIONS:
        _expect(given[name] is None or _is_version(given[name]), name, "a version or null")
    for name in _SHARES:
        _expect(type(given[name]) in {int, float}, name, "a number")
    _expect(isinstance(given["pinned"], bool), "pinned", "true or false")
    previous, changes = given["previous"], given["changes"]
    several = isinstance(previous, list) and all(map(_is_version, previous))
    _expect(several, "previous", "a list of versions")
    said = isinstance(changes, list) and all(map(_is_change, changes))
    _expect(said, "changes", "a list of changes")
    given |= {"previous": tuple(previous), "changes": tuple(Change(**each) for each in changes)}
    return Labels(**given)


def _expect(right: bool, name: str, what: str) -> None:
    if not right:
        raise LabelError(f"{name}: expected {what}")


def _is_version(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_change(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {each.name for each in fields(Change)}
        and all(isinstance(each, str) for each in value.values())
    )


def _unpinned(labels: Labels) -> Labels:
    if labels.pinned:
        raise PinnedError(f"version {labels.stable} is pinned; unpin it first")
    return labels


def _over(labels: Labels, expected: Collection[int | None] | None) -> None:
    if expected is not None and labels.stable not in expected:
        raise MovedError(f"version {_said(labels.stable)} has become the stable one since")


def _difference(before: Labels, after: Labels) -> str:
    """What changed, in words: "stable 6 to 7, canary 7 to none"."""
    names = [each.name for each in fields(Labels) if each.name not in {"previous", "changes"}]
    changed: Sequence[str] = [
        f"{name} {_said(getattr(before, name))} to {_said(getattr(after, name))}"
        for name in names
        if getattr(before, name) != getattr(after, name)
    ]
    return ", ".join(changed)


def _said(value: object) -> str:
    return "none" if value is None else str(value).lower()


def _write(path: Path, labels: Labels) -> None:
    """Replace the file; the caller holds the lock, so the file beside it is nobody else's."""
    text = json.dumps({"format": FORMAT, **asdict(labels)}, ensure_ascii=False, indent=1) + "\n"
    beside = path.parent / _NEXT
    beside.write_bytes(text.encode("utf-8", "replace"))  # a reason may have come as any bytes
    sync(beside)
    beside.rename(path)
    sync(path.parent)

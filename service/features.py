"""The behaviour store: a user's history and profile in Redis, read in one bounded round trip.

Where they lie says `model.contract.store`. A history may lie in several layouts, when the schema's
behaviour fields have changed: they are read together, and become one in the layout asked for.

A store that is slow, down or wrong never fails a request: `BehaviourStore.read` then answers
without, says so in ``degraded``, and after several failures in a row stops asking for a while.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from types import TracebackType
from typing import Any

import orjson
from redis.exceptions import RedisError

from model.contract.history import HistoryCodec, HistoryError, Records, in_order
from model.contract.schema import Schema
from model.contract.store import history_key, layouts_key, partition, profile_key
from service.limit import Limit
from store.errors import in_words
from store.node import Command
from store.nodes import reach
from store.url import StoreUrl

HISTORY_UNAVAILABLE = "history_unavailable"
PROFILE_UNAVAILABLE = "profile_unavailable"
_PATIENT_SECONDS = 1.0
_RETRY_SECONDS = 1.0
_FAIR = 0.25  # of the timeout: less is no fair chance to answer
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stored:
    """What the store knows of a user; nothing for an unknown one. ``degraded`` says what failed."""

    history: Records
    profile: Mapping[str, Any] = field(default_factory=dict)
    degraded: str | None = None


@dataclass(frozen=True)
class _Found:
    """Redis' answers about a user: the profile, and of each layout the history's length in bytes
    and the end of it."""

    profile: bytes | None
    layouts: Sequence[HistoryCodec] = ()
    lengths: Sequence[int] = ()
    ends: Sequence[bytes] = ()


class Breaker:
    """Stops asking a failing store: open after ``failures`` in a row, for ``seconds``; then one
    caller probes, and its outcome closes or reopens it."""

    def __init__(
        self, failures: int, seconds: float, clock: Callable[[], float] = monotonic
    ) -> None:
        self._limit, self._seconds, self._clock = failures, seconds, clock
        self._failures = 0
        self._retry_at = 0.0
        self._probing = False

    @property
    def open(self) -> bool:
        return self._failures >= self._limit

    def allow(self) -> bool:
        """Whether to ask now. Who is allowed must say `succeeded`, `failed` or `left`."""
        if not self.open:
            return True
        if self._probing or self._clock() < self._retry_at:
            return False
        self._probing = True
        return True

    def succeeded(self) -> None:
        self._failures, self._probing = 0, False

    def failed(self) -> None:
        self._failures, self._probing = self._failures + 1, False
        if self.open:
            self._retry_at = self._clock() + self._seconds

    def left(self) -> None:
        """The caller went before there was an outcome."""
        self._probing = False


class BehaviourStore:
    """Reads users from Redis; `async with` opens and closes its connections."""

    def __init__(
        self,
        url: str,
        *,
        prefix: str,
        timeout: float,
        connections: int,
        breaker: Breaker,
        on_failure: Callable[[str], object] = lambda reason: None,
    ) -> None:
        self._prefix, self._timeout = prefix, timeout
        self.breaker, self._on_failure = breaker, on_failure
        self._redis = reach(
            StoreUrl.parse(url), limit=connections, connect_seconds=_PATIENT_SECONDS
        )
        self._codecs: dict[str, HistoryCodec] = {}
        self._described: set[bytes] = set()
        self._answered = False
        self._trouble = "it was not asked yet"
        self._told: set[str] = set()

    @property
    def answered(self) -> bool:
        """Whether Redis has ever answered."""
        return self._answered

    @property
    def trouble(self) -> str:
        """Why Redis gives no answers now; empty when it does."""
        return self._trouble

    async def __aenter__(self) -> BehaviourStore:
        await self._check()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._redis.close()

    async def read(
        self, user: str, schema: Schema, codec: HistoryCodec, *, history: bool, budget: float
    ) -> Stored:
        """History (the last of it that the schema looks at, if asked) and profile of a user.

        One round trip of at most ``budget`` seconds or the store's own timeout. Never raises for
        what Redis does.
        """
        missing = HISTORY_UNAVAILABLE if history else PROFILE_UNAVAILABLE
        if not self.breaker.allow():
            return Stored(codec.empty(), degraded=missing)
        given = min(self._timeout, budget)
        try:
            with Limit(max(0.0, given)):
                found = await self._find(user, schema, codec, history)
        except (RedisError, OSError, TimeoutError) as error:
            # Redis answered; that a key of this user is none of ours is no one else's loss.
            if str(error).startswith("WRONGTYPE"):
                self.breaker.succeeded()
                self._report("corrupt key")
                return Stored(codec.empty(), degraded=missing)
            # A caller in too much of a hurry says nothing of the store, and must not shut it.
            if isinstance(error, TimeoutError) and given < self._timeout * _FAIR:
                self.breaker.left()
            else:
                self.breaker.failed()
            self._failed(error)
            return Stored(codec.empty(), degraded=missing)
        except BaseException:
            self.breaker.left()
            raise
        self.breaker.succeeded()
        self._fine()
        return self._decode(found, codec)

    async def watch(self, every: float) -> None:
        """Ask whether Redis is there, for ever; more often until it has answered once."""
        while True:
            await asyncio.sleep(every if self._answered else min(every, _RETRY_SECONDS))
            await self._check()

    async def _check(self) -> None:
        try:
            with Limit(_PATIENT_SECONDS):
                await self._redis.check()
        except (RedisError, OSError, TimeoutError) as error:
            self._failed(error)
        else:
            self._fine()

    async def _find(self, user: str, schema: Schema, codec: HistoryCodec, history: bool) -> _Found:
        """One round trip, and where someone has written a layout that is new here another one.

        Raises RedisError and OSError.
        """
        at = profile_key(self._prefix, user)
        asked: list[Command] = [("GET", at)]
        if not history:
            [profile] = await self._redis.ask(at, asked)
            return _Found(profile)
        self._codecs.setdefault(codec.layout, codec)
        asked.append(("HVALS", layouts_key(self._prefix, partition(user))))
        while True:
            layouts = [each for each in self._codecs.values() if each.layout != codec.layout]
            layouts.append(codec)  # what is written now, so the newest
            ends: list[Command] = []
            for each in layouts:
                key = history_key(self._prefix, user, each.layout)
                last = -schema.history_length * each.width
                ends += [("STRLEN", key), ("GETRANGE", key, last, -1)]
            profile, described, *parts = await self._redis.ask(at, asked + ends)
            if not self._learn(described):
                return _Found(profile, layouts, parts[::2], parts[1::2])

    def _learn(self, described: Sequence[bytes]) -> bool:
        """Take note of the layouts that there are; whether one was not known."""
        new = [each for each in described if each not in self._described]
        for each in new:
            self._described.add(each)
            try:
                codec = HistoryCodec.parse(each)
            except HistoryError:
                self._report("corrupt layout")
            else:
                self._codecs[codec.layout] = codec
        return bool(new)

    def _decode(self, found: _Found, codec: HistoryCodec) -> Stored:
        degraded, parts = None, list[Records]()
        try:
            fields = {} if found.profile is None else orjson.loads(found.profile)
            if not isinstance(fields, dict):
                raise ValueError("a profile is a JSON object")
        except ValueError:
            fields, degraded = {}, PROFILE_UNAVAILABLE
            self._report("corrupt profile")
        for layout, whole, data in zip(found.layouts, found.lengths, found.ends, strict=True):
            if not whole:
                continue
            try:
                # Of a history that is cut in the middle of a record no record can be trusted.
                if whole % layout.width:
                    raise HistoryError("a record is cut")
                parts.append(codec.convert(layout.unpack(data), layout))
            except HistoryError:
                degraded = HISTORY_UNAVAILABLE
                self._report("corrupt history")
        if len(parts) > 1:
            parts = [in_order(parts)]
        return Stored(parts[0] if parts else codec.empty(), fields, degraded)

    def _fine(self) -> None:
        """Redis answered."""
        if self._trouble:
            self._answered, self._trouble = True, ""
            self._told.clear()
            _log.info("the behaviour store answers")

    def _failed(self, error: Exception) -> None:
        """Redis gave no answer. The log says so once for each reason, until there is one."""
        self._on_failure(type(error).__name__)
        self._trouble = reason = in_words(error)
        if reason not in self._told:
            self._told.add(reason)
            _log.warning("the behaviour store does not answer: %s", reason)

    def _report(self, reason: str) -> None:
        self._on_failure(reason)
        _log.warning("the behaviour store failed: %s", reason)

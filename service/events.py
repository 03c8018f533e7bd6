"""Events: what callers report enters the user's history and the log at once, or not at all.

One script per user, all of a request in one round trip. Whatever a caller sends again is counted
once, so after any failure the same request may simply be sent again.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import orjson
from redis.exceptions import NoScriptError, RedisError

from model.contract.encode import Encoder, FieldError
from model.contract.history import KEPT, HistoryCodec
from model.contract.labels import Withdrawal
from model.contract.log import Erased, Event, Scored, dump, kinds_of, read_event
from model.contract.schema import Schema
from model.contract.store import (
    LAYOUTS_SECONDS,
    erased_key,
    history_key,
    layouts_key,
    log_key,
    partition,
    profile_key,
    seen_key,
    withdrawn_key,
)
from service import scripts
from service.errors import Unavailable
from store.errors import in_words
from store.node import Command
from store.nodes import reach
from store.url import StoreUrl

Status = Literal["accepted", "duplicate", "refused"]
Call = tuple[list[str], list[Any]]
_MILLISECONDS = {"ms": 1, "s": 1000}
_log = logging.getLogger(__name__)
_AT_ONCE = 200  # entries of a log that are looked at before others get their turn
_INLINE = 50
_REASONS = {
    scripts.ERASED: "the user was erased after this time, or within a minute before it",
    scripts.FULL: "the log is full; is it collected?",
}


@dataclass(frozen=True)
class Result:
    """What became of one event; ``field`` and ``reason`` where it was refused."""

    status: Status
    field: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Erasure:
    """What went: keys of the user, and entries of the log that were not collected yet."""

    keys: int
    entries: int


class EventLog:
    """Writes to the store; `async with` opens and closes its connections.

    ``horizon_ms``: how old an event may be, and the time to live of all but tombstones, which
    live ``tombstone_ms``. ``limit``: entries that the log of one partition may hold.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str,
        timeout: float,
        connections: int,
        horizon_ms: int,
        tombstone_ms: int,
        limit: int,
        on_failure: Callable[[str], object] = lambda reason: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._prefix, self._limit, self._clock = prefix, limit, clock
        self._on_failure = on_failure
        self._horizon_ms, self._tombstone_ms = horizon_ms, tombstone_ms
        self._timeout = timeout
        self._redis = reach(StoreUrl.parse(url), limit=connections, connect_seconds=timeout)

    async def __aenter__(self) -> EventLog:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._redis.close()

    @property
    def now(self) -> int:
        """ms since 1970."""
        return int(self._clock() * 1000)

    async def append(self, raws: Sequence[Any], encoder: Encoder) -> list[Result]:
        """Take events as they were sent; what became of each. Raises `Unavailable`.

        After `Unavailable` some may have been taken: they are duplicates the next time.
        """
        if len(raws) > _INLINE:  # several ms, in which no one else would be answered
            results, calls = await asyncio.to_thread(self._prepare, raws, encoder)
        else:
            results, calls = self._prepare(raws, encoder)
        if calls:
            found = await self._run(scripts.APPEND, [call for _, call in calls])
            for (places, _), codes in zip(calls, found, strict=True):
                results |= dict(zip(places, map(_result, codes), strict=True))
        return [results[at] for at in range(len(raws))]

    def _prepare(
        self, raws: Sequence[Any], encoder: Encoder
    ) -> tuple[dict[int, Result], list[tuple[list[int], Call]]]:
        """What is refused at once, and a call for each user with the places of its events."""
        schema, received, kinds = encoder.schema, self.now, kinds_of(encoder.schema)
        results: dict[int, Result] = {}
        by_user: dict[str, dict[int, tuple[Event, bytes]]] = {}
        for at, raw in enumerate(raws):
            try:
                event = read_event(raw, kinds, received)
                self._in_time(event, schema)
                record = _record(event, encoder)
            except FieldError as error:
                results[at] = Result("refused", error.field, f"expected {error.expected}")
            else:
                by_user.setdefault(event.user_id, {})[at] = event, record
        calls = [(list(of), self._appending(of, encoder)) for of in by_user.values()]
        return results, calls

    def noting(self, score: Scored) -> Call:
        """The call that logs an answered score. Raises ValueError for what is no JSON."""
        keys = [self._log_of(score.user_id), erased_key(self._prefix, score.user_id)]
        payload = orjson.dumps(dump(score), option=orjson.OPT_SERIALIZE_NUMPY)
        return keys, [score.user_id, payload, score.received, self._horizon_ms, self._limit]

    async def note(self, calls: Sequence[Call]) -> list[int]:
        """Make calls of `noting`; what the script says of each. Raises `Unavailable`."""
        return await self._run(scripts.NOTE, calls)

    async def tell_withdrawn(self, model: str, withdrawal: Withdrawal) -> None:
        """Leave a canary that failed here to whoever may write the labels. Raises `Unavailable`."""
        given = [model, withdrawal.described, self._horizon_ms]
        await self._run(scripts.TELL, [([withdrawn_key(self._prefix)], given)])

    async def erase(self, user: str, codec: HistoryCodec | None = None) -> Erasure:
        """Forget a user: history, profile and what the log still holds. Raises `Unavailable`.

        ``codec`` is of the layout in service; all that were ever written are known. What is left
        says when, so that those who collected the log forget the user too.
        """
        received, log = self.now, self._log_of(user)
        described = layouts_key(self._prefix, partition(user))
        payload = orjson.dumps(dump(Erased(user, received)))
        gone = None
        while gone is None:  # again where someone has just written another layout
            [known] = await self._asked([(described, ("HKEYS", described))])
            keys = [log, erased_key(self._prefix, user), described, *self._own(user, known, codec)]
            given = [user, payload, received, self._horizon_ms, self._tombstone_ms, len(known)]
            [found] = await self._run(scripts.ERASE, [(keys, given)])
            gone, last = found or (None, None)
        start, entries = b"-", 0
        while start:
            step = [user, start, last, _AT_ONCE]
            [[some, start]] = await self._run(scripts.FORGET, [([log], step)])
            entries += some
        return Erasure(gone, entries)

    def _own(self, user: str, known: Sequence[bytes], codec: HistoryCodec | None) -> list[str]:
        """The keys of what is stored of a user, with histories in the layouts that are known."""
        layouts = {str(each, errors="replace") for each in known}
        layouts |= {codec.layout} if codec else set()
        own = [history_key(self._prefix, user, layout) for layout in sorted(layouts)]
        return [*own, profile_key(self._prefix, user), seen_key(self._prefix, user)]

    def _appending(self, events: Mapping[int, tuple[Event, bytes]], encoder: Encoder) -> Call:
        """The call of the script for the events of one user."""
        schema, codec = encoder.schema, encoder.codec
        user = next(iter(events.values()))[0].user_id
        keys = [
            history_key(self._prefix, user, codec.layout),
            seen_key(self._prefix, user),
            self._log_of(user),
            erased_key(self._prefix, user),
            layouts_key(self._prefix, partition(user)),
        ]
        kept, unit = KEPT * schema.history_length, _MILLISECONDS[schema.ts_unit]
        given: list[Any] = [codec.width, kept, self._horizon_ms, self._limit, user, unit]
        lasting = max(1000 * LAYOUTS_SECONDS, self._horizon_ms)
        given += [codec.action, codec.layout, codec.described, lasting]
        for event, record in events.values():
            payload = orjson.dumps(dump(event))
            given += [event.ts, record, event.key.to_bytes(8, "little"), payload]
        return keys, given

    def _in_time(self, event: Event, schema: Schema) -> None:
        """Raises `FieldError` for what has not happened yet or is long past."""
        happened = event.ts * _MILLISECONDS[schema.ts_unit]
        if happened > self.now + scripts.FUTURE_MS:
            raise FieldError("ts", f"a time at most {scripts.FUTURE_MS // 1000} s in the future")
        if happened < self.now - self._horizon_ms:
            days = self._horizon_ms // 86_400_000
            raise FieldError("ts", f"a time at most {days} days ago")

    def _log_of(self, user: str) -> str:
        return log_key(self._prefix, partition(user))

    async def _run(self, script: str, calls: Sequence[Call]) -> list[Any]:
        """What a script says of each call, in one round trip."""
        digest = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
        said = await self._asked([_command("EVALSHA", digest, call) for call in calls])
        unknown = [at for at, each in enumerate(said) if isinstance(each, NoScriptError)]
        if unknown:  # a new Redis: these have not run
            again = await self._asked([_command("EVAL", script, calls[at]) for at in unknown])
            for at, each in zip(unknown, again, strict=True):
                said[at] = each
        return said

    async def _asked(self, calls: Sequence[tuple[str, Command]]) -> list[Any]:
        """The answers; an unknown script is one. Raises `Unavailable`."""
        try:
            async with asyncio.timeout(self._timeout):
                answers = await self._redis.ask_each(calls)
            for answer in answers:
                if isinstance(answer, Exception) and not isinstance(answer, NoScriptError):
                    raise answer
        except (RedisError, OSError, TimeoutError) as error:
            self._on_failure(type(error).__name__)
            # Redis repeats the command, with the user's id in its keys: it must not reach the log.
            _log.warning("the store did not take a write: %s", in_words(error))
            raise Unavailable("The store did not take it; send it again") from None
        return answers


def _command(name: str, script: str, call: Call) -> tuple[str, Command]:
    """A script's call, under its first key."""
    keys, given = call
    return keys[0], (name, script, len(keys), *keys, *given)


def _record(event: Event, encoder: Encoder) -> bytes:
    """The record of an event that is a behaviour, else none. Raises `FieldError`."""
    if event.action not in encoder.schema.history_actions:
        return b""
    try:
        return bytes(encoder.records([event.raw(encoder.schema)]).tobytes())
    except FieldError as error:
        raise FieldError(error.field.rpartition(".")[2], error.expected) from None


def _result(code: int) -> Result:
    if code == scripts.ACCEPTED:
        return Result("accepted")
    if code == scripts.DUPLICATE:
        return Result("duplicate")
    return Result("refused", "ts" if code != scripts.FULL else None, _REASONS[code])

"""The streams of the log, read as a consumer of the group "collect".

What was read stays pending, for whoever asks next, until it is said to be done; then it goes from
the stream. A round trip asks several partitions that one Redis holds, each with a command of its
own; so few of them, and for so few entries, that an answer fits into memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from redis.client import Pipeline
from redis.exceptions import RedisError

from model.contract.store import PARTITIONS, log_key
from store.blocking import Clients
from training.entries import Taken

GROUP = "collect"
KEPT_SECONDS = 90 * 24 * 3600
"""Time to live of a stream that is made here; the service sets its own with each entry."""


SIDE_BY_SIDE = 8  # partitions that are read in one round trip
_GROUPS = [range(at, at + SIDE_BY_SIDE) for at in range(0, PARTITIONS, SIDE_BY_SIDE)]


@dataclass
class Streams:
    """The partitions' streams for one consumer; at most ``count`` entries of each at a time, and
    fewer where ``room`` bytes would not hold as many of the largest that was seen.

    Everything raises RedisError; `join` and `pending` then make good what was under way.
    """

    clients: Clients
    prefix: str
    consumer: str
    count: int = 100
    room: int = 64 * 2**20
    _largest: int = 1

    def join(self) -> None:
        """Have the group on every stream, from its first entry on."""
        made = self._each(
            lambda pipeline, key: pipeline.xgroup_create(key, GROUP, "0", mkstream=True),
            raises=False,
        )
        with self._found_anew():
            for each in made:
                if isinstance(each, Exception) and not str(each).startswith("BUSYGROUP"):
                    raise each
            living = self._each(lambda pipeline, key: pipeline.ttl(key))
            for key, seconds in zip(self._keys(), living, strict=True):
                if seconds < 0:
                    self.clients.of(key).expire(key, KEPT_SECONDS)

    def claim(self, idle_ms: int) -> int:
        """Take over what others have left pending for that long; how many entries."""
        claimed, count = 0, max(1, self.count // SIDE_BY_SIDE)  # the entries are answered too
        starts: dict[str, Any] = dict.fromkeys(self._keys(), b"0-0")
        while starts:
            answers = self._each(
                lambda pipeline, key: pipeline.xautoclaim(
                    *(key, GROUP, self.consumer, idle_ms, starts[key]),  # noqa: B023  called at once
                    count=count,
                    justid=False,
                ),
                list(starts),
            )
            claimed += sum(len(taken) for _, taken, *_ in answers)
            after = {key: start for key, (start, *_) in zip(starts, answers, strict=True)}
            starts = {key: start for key, start in after.items() if start != b"0-0"}
        return claimed

    def pending(self) -> Iterator[list[Taken]]:
        """What this consumer was given before and has not done, some at a time."""
        for partitions in _GROUPS:
            after = dict.fromkeys(partitions, "0")
            while after:
                found = self._read(after)
                after = {taken.partition: taken.entry for taken in found}
                if found:
                    yield found

    def fresh(self) -> Iterator[list[Taken]]:
        """What no consumer was given yet, once around all partitions, some at a time; nothing is
        waited for."""
        for partitions in _GROUPS:
            if found := self._read(dict.fromkeys(partitions, ">")):
                yield found

    def done(self, entries: Sequence[Taken]) -> None:
        """Have entries neither pending nor in their streams."""
        by_partition = defaultdict(list)
        for taken in entries:
            by_partition[taken.partition].append(taken.entry)
        with self._found_anew():
            for partition, names in by_partition.items():
                key = log_key(self.prefix, partition)
                with self.clients.of(key).pipeline(transaction=True) as pipeline:
                    pipeline.xack(key, GROUP, *names)
                    pipeline.xdel(key, *names)
                    pipeline.execute()

    def waiting(self) -> int:
        """Entries in all streams."""
        return sum(self._each(lambda pipeline, key: pipeline.xlen(key)))

    def now(self) -> int:
        """The clock of Redis, in ms since 1970; of several the one that is ahead."""
        with self._found_anew():
            times = [client.time() for client in self.clients.all()]
        return max(int(seconds) * 1000 + int(micros) // 1000 for seconds, micros in times)

    def leave(self) -> None:
        """Have no trace of this consumer left, where it has nothing pending."""
        held = self._each(
            lambda pipeline, key: pipeline.xpending_range(
                *(key, GROUP, "-", "+", 1), consumername=self.consumer
            )
        )
        self._each(
            lambda pipeline, key: pipeline.xgroup_delconsumer(key, GROUP, self.consumer),
            [key for key, pending in zip(self._keys(), held, strict=True) if not pending],
        )

    def _read(self, after: Mapping[int, str]) -> list[Taken]:
        fitting = self.room // (SIDE_BY_SIDE * self._largest)
        count = max(1, min(self.count, fitting))
        asked = {log_key(self.prefix, partition): last for partition, last in after.items()}
        answers = self._each(
            lambda pipeline, key: pipeline.xreadgroup(
                GROUP, self.consumer, {key: asked[key]}, count=count
            ),
            list(asked),
        )
        found = [
            Taken(partition, entry.decode(), fields)
            for partition, answer in zip(after, answers, strict=True)
            for _, entries in answer
            for entry, fields in entries
        ]
        self._largest = max([self._largest, *(taken.size for taken in found)])
        return found

    def _each(
        self,
        ask: Callable[[Pipeline, str], object],
        keys: Sequence[str] | None = None,
        *,
        raises: bool = True,
    ) -> list[Any]:
        """The answers to a command on these streams, or on all."""
        asked = self._keys() if keys is None else keys
        answers: dict[str, Any] = {}
        with self._found_anew():
            for client, held in self.clients.by_node(asked):
                with client.pipeline(transaction=False) as pipeline:
                    for key in held:
                        ask(pipeline, key)
                    found = pipeline.execute(raise_on_error=raises)
                answers.update(zip(held, found, strict=True))
        return [answers[key] for key in asked]

    @contextmanager
    def _found_anew(self) -> Iterator[None]:
        """After a failure another Redis may hold what this one held."""
        try:
            yield
        except RedisError:
            self.clients.forget()
            raise

    def _keys(self) -> list[str]:
        return [log_key(self.prefix, partition) for partition in range(PARTITIONS)]

"""The streams of the log, read as a consumer of the group "collect".

What was read stays pending, for whoever asks next, until it is said to be done; then it goes from
the stream. One round trip asks all partitions, each with a command of its own, as on a cluster.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from redis import Redis
from redis.client import Pipeline

from model.contract.store import PARTITIONS, log_key
from training.entries import Taken

GROUP = "collect"
KEPT_SECONDS = 90 * 24 * 3600
"""Time to live of a stream that is made here; the service sets its own with each entry."""


@dataclass(frozen=True)
class Streams:
    """The partitions' streams for one consumer; at most ``count`` entries of each at a time.

    Everything raises RedisError; `join` and `pending` then make good what was under way.
    """

    redis: Redis
    prefix: str
    consumer: str
    count: int = 100

    def join(self) -> None:
        """Have the group on every stream, from its first entry on."""
        for made in self._each(
            lambda pipeline, key: pipeline.xgroup_create(key, GROUP, "0", mkstream=True),
            raises=False,
        ):
            if isinstance(made, Exception) and not str(made).startswith("BUSYGROUP"):
                raise made
        living = self._each(lambda pipeline, key: pipeline.ttl(key))
        for key, seconds in zip(self._keys(), living, strict=True):
            if seconds < 0:
                self.redis.expire(key, KEPT_SECONDS)

    def claim(self, idle_ms: int) -> int:
        """Take over what others have left pending for that long; how many entries."""
        claimed = 0
        starts = dict.fromkeys(self._keys(), b"0-0")
        while starts:
            with self.redis.pipeline(transaction=False) as pipeline:
                for key, start in starts.items():
                    pipeline.xautoclaim(
                        *(key, GROUP, self.consumer, idle_ms, start),
                        count=self.count,
                        justid=False,
                    )
                answers = dict(zip(starts, pipeline.execute(), strict=True))
            claimed += sum(len(taken) for _, taken, *_ in answers.values())
            starts = {key: start for key, (start, *_) in answers.items() if start != b"0-0"}
        return claimed

    def pending(self) -> Iterator[list[Taken]]:
        """What this consumer was given before and has not done, some at a time."""
        after = dict.fromkeys(range(PARTITIONS), "0")
        while after:
            found = self._read(after)
            after = {taken.partition: taken.entry for taken in found}
            if found:
                yield found

    def fresh(self) -> list[Taken]:
        """What no consumer was given yet; nothing is waited for."""
        return self._read(dict.fromkeys(range(PARTITIONS), ">"))

    def done(self, entries: Sequence[Taken]) -> None:
        """Have entries neither pending nor in their streams."""
        by_partition = defaultdict(list)
        for taken in entries:
            by_partition[taken.partition].append(taken.entry)
        for partition, names in by_partition.items():
            with self.redis.pipeline(transaction=True) as pipeline:
                pipeline.xack(log_key(self.prefix, partition), GROUP, *names)
                pipeline.xdel(log_key(self.prefix, partition), *names)
                pipeline.execute()

    def waiting(self) -> int:
        """Entries in all streams."""
        return sum(self._each(lambda pipeline, key: pipeline.xlen(key)))

    def now(self) -> int:
        """The clock of Redis, in ms since 1970."""
        seconds, micros = self.redis.time()
        return int(seconds) * 1000 + int(micros) // 1000

    def leave(self) -> None:
        """Have no trace of this consumer left, where it has nothing pending."""
        held = self._each(
            lambda pipeline, key: pipeline.xpending_range(
                *(key, GROUP, "-", "+", 1), consumername=self.consumer
            )
        )
        with self.redis.pipeline(transaction=False) as pipeline:
            for key, pending in zip(self._keys(), held, strict=True):
                if not pending:
                    pipeline.xgroup_delconsumer(key, GROUP, self.consumer)
            pipeline.execute()

    def _read(self, after: dict[int, str]) -> list[Taken]:
        with self.redis.pipeline(transaction=False) as pipeline:
            for partition, last in after.items():
                key = log_key(self.prefix, partition)
                pipeline.xreadgroup(GROUP, self.consumer, {key: last}, count=self.count)
            answers = pipeline.execute()
        return [
            Taken(partition, entry.decode(), fields)
            for partition, answer in zip(after, answers, strict=True)
            for _, entries in answer
            for entry, fields in entries
        ]

    def _each(self, ask: Callable[[Pipeline, str], object], *, raises: bool = True) -> list[Any]:
        """The answers to a command on every stream."""
        with self.redis.pipeline(transaction=False) as pipeline:
            for key in self._keys():
                ask(pipeline, key)
            return pipeline.execute(raise_on_error=raises)

    def _keys(self) -> list[str]:
        return [log_key(self.prefix, partition) for partition in range(PARTITIONS)]

"""The scorer: one request from its checked form to its scores: store, encoder, batcher, answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter, time
from typing import ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from model.contract.batch import Batch, merge
from model.contract.encode import FieldError, Given, Request
from model.contract.history import Records, recent
from service.batcher import Batcher, Done
from service.engine import Floats, Scores
from service.errors import DeadlineExceeded, Invalid, NotReady
from service.features import PROFILE_UNAVAILABLE, BehaviourStore, Stored
from service.registry import Registry, Version
from service.score_log import Noted, ScoreLog
from service.telemetry import Telemetry
from service.wire import Answer, Ask, Form

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# Above this many bytes a body is read and encoded in a thread: it takes milliseconds.
INLINE_BYTES = 32_768


@dataclass(frozen=True, eq=False)
class Job:
    """An encoded request for one version, and what it was encoded from."""

    version: Version
    request: Request
    batch: Batch
    explain: bool

    @property
    def behaviours(self) -> int:
        return int(self.batch.history.shape[1])


def cost(jobs: Sequence[Job]) -> int:
    """Padded pairs of one call: users x most candidates x (longest history, at least 1)."""
    slots = max(job.batch.candidates for job in jobs)
    return len(jobs) * slots * max(1, *(job.behaviours for job in jobs))


def run(jobs: Sequence[Job]) -> list[Scores]:
    """One call of the model for jobs of one version; each job's own part of the scores."""
    scores = jobs[0].version.engine.run(
        merge([job.batch for job in jobs]), weight=any(job.explain for job in jobs)
    )
    ends = np.cumsum([job.batch.candidates for job in jobs])[:-1]
    logits = np.split(scores.logit, ends)
    if scores.weight is None:
        return [Scores(logit) for logit in logits]
    weights = np.split(scores.weight, ends)
    return [
        Scores(logit, weight[:, : job.behaviours])
        for job, logit, weight in zip(jobs, logits, weights, strict=True)
    ]


class Scorer:
    """Answers score requests with what the registry serves."""

    def __init__(
        self,
        *,
        registry: Registry,
        store: BehaviourStore,
        batcher: Batcher[Job, Scores],
        log: ScoreLog,
        telemetry: Telemetry,
        timeout_ms: int,
    ) -> None:
        self._registry, self._store, self._batcher, self._log = registry, store, batcher, log
        self._telemetry, self._timeout_ms = telemetry, timeout_ms

    async def score(self, form: Form, body: bytes, request_id: str, started: float) -> bytes:
        """The answer's body, in the request's form. ``started`` is of `perf_counter`.

        Raises `Problem`.
        """
        version = self._registry.current
        if version is None:
            raise NotReady("No verified model yet")
        large = len(body) > INLINE_BYTES
        asked = await _perform(large, form.read, body, version.schema)
        left = (asked.timeout_ms or self._timeout_ms) / 1e3 - (perf_counter() - started)
        if left <= 0:
            raise DeadlineExceeded("The deadline passed before the model could run")
        deadline = asyncio.get_running_loop().time() + left
        asking = perf_counter()
        stored = await self._stored(asked, version, left)
        store_seconds = perf_counter() - asking
        job, known, stored = await _perform(large, _encode, form, asked, version, stored)
        if perf_counter() - asking >= left:
            raise DeadlineExceeded("The deadline passed before the model could run")
        done = await self._batcher.submit(job, deadline)
        self._count(known, stored, store_seconds, done, behaviours=job.behaviours)
        total = perf_counter() - started
        answer = Answer(
            request_id=request_id,
            model=version.name,
            version=version.number,
            history_length=job.behaviours,
            degraded=stored.degraded,
            tasks=version.schema.tasks,
            probability=expit(done.answer.logit.astype(np.float64)),
            known=known,
            because=_because(asked, version, stored.history, done.answer.weight),
            timing_ms={
                "store": round(store_seconds * 1e3, 3),
                "queue": round(done.queue_seconds * 1e3, 3),
                "model": round(done.run_seconds * 1e3, 3),
                "total": round(total * 1e3, 3),
            },
        )
        if self._log.wants(request_id):
            self._log.add(Noted(asked, answer, version, job.request, job.batch, int(time() * 1000)))
        return form.write(asked, answer)

    async def _stored(self, asked: Ask, version: Version, left: float) -> Stored:
        """What the store has to add to a request; it is not asked for nothing."""
        schema, codec = version.schema, version.encoder.codec
        in_store = asked.history is None
        lacks = any(field.name not in asked.overrides for field in schema.user)
        if not in_store and not lacks:
            return Stored(codec.empty())
        # Half of the time left, so that a store that hangs leaves some for the model.
        return await self._store.read(asked.user, schema, codec, history=in_store, budget=left / 2)

    def _count(
        self,
        known: npt.NDArray[np.bool_],
        stored: Stored,
        store_seconds: float,
        done: Done[Scores],
        *,
        behaviours: int,
    ) -> None:
        telemetry = self._telemetry
        telemetry.candidates.observe(len(known))
        telemetry.history_length.observe(behaviours)
        telemetry.store_seconds.observe(store_seconds)
        telemetry.queue_seconds.observe(done.queue_seconds)
        telemetry.model_seconds.observe(done.run_seconds)
        unknown = len(known) - int(known.sum())
        if unknown:
            telemetry.unknown_items.inc(unknown)
        if stored.degraded:
            telemetry.degraded.labels(stored.degraded).inc()


async def _perform(
    in_thread: bool,
    work: Callable[Arguments, Result],
    *args: Arguments.args,
    **kw: Arguments.kwargs,
) -> Result:
    return await asyncio.to_thread(work, *args, **kw) if in_thread else work(*args, **kw)


def _encode(
    form: Form, asked: Ask, version: Version, stored: Stored
) -> tuple[Job, npt.NDArray[np.bool_], Stored]:
    """The job, which candidates are known, and what of the store was really used."""
    encoder = version.encoder
    try:
        history = stored.history if asked.history is None else encoder.records(asked.history)
        request = Request(
            candidates=asked.candidates,
            history=history,
            user={**stored.profile, **asked.overrides},
            context=asked.context,
            given=asked.given,
            columns=asked.columns,
        )
        try:
            batch, known = encoder.encode(request)
        except FieldError as error:
            group, _, name = error.field.partition(".")
            if group != "user" or name in asked.overrides:
                raise
            # The stored profile does not fit this model; the caller can't help it.
            stored = replace(stored, profile={}, degraded=stored.degraded or PROFILE_UNAVAILABLE)
            request = replace(request, user=asked.overrides)
            batch, known = encoder.encode(request)
    except FieldError as error:
        raise Invalid(f"Expected {error.expected}", form.named(error.field)) from None
    return Job(version, request, batch, asked.explain > 0), known, stored


def expit(logit: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """1 / (1 + exp(-logit)), without overflow."""
    small = np.exp(-np.abs(logit))
    return np.where(logit >= 0, 1.0, small) / (1.0 + small)


def _because(
    asked: Ask, version: Version, records: Records, weight: Floats | None
) -> list[list[Given]] | None:
    """For each candidate the behaviours of the largest |weight|, the largest first."""
    if not asked.explain:
        return None
    if weight is None or not weight.shape[1]:
        return [[] for _ in asked.candidates]
    top = min(asked.explain, weight.shape[1])
    left, each = np.abs(weight), np.arange(len(weight))
    chosen = np.empty((len(weight), top), np.int64)
    for place in range(top):  # a few passes cost less than a partition and a sort of each row
        chosen[:, place] = left.argmax(axis=1)
        left[each, chosen[:, place]] = -1
    used = np.zeros(weight.shape[1], np.bool_)
    used[chosen] = True
    named = _names(asked, version, records, np.flatnonzero(used))
    weights = np.take_along_axis(weight, chosen, axis=1)
    reasons: list[Given] = [
        {"item_id": named[at], "weight": value}
        for at, value in zip(chosen.ravel().tolist(), weights.ravel().tolist(), strict=True)
    ]
    return [reasons[begin : begin + top] for begin in range(0, len(reasons), top)]


def _names(
    asked: Ask, version: Version, records: Records, positions: npt.NDArray[np.int64]
) -> Mapping[int, str | int | None]:
    """The raw item ids of behaviours, by their position among those looked at."""
    length = version.schema.history_length
    if asked.history is not None:
        in_time = sorted(asked.history, key=lambda behaviour: int(behaviour["ts"]))[-length:]
        return {at: in_time[at]["item_id"] for at in positions.tolist()}
    catalogue = version.encoder.catalogue
    found = catalogue.find(recent(records, length)["item_id"][positions])
    return {
        at: catalogue.name(place) if place >= 0 else None
        for at, place in zip(positions.tolist(), found.tolist(), strict=True)
    }

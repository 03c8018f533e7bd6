"""The scorer: one request from its checked form to its scores: store, encoder, batcher, answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from time import perf_counter, time
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from model.contract.batch import Batch, merge
from model.contract.encode import FieldError, Request
from model.contract.history import Records, recent
from service.batcher import Batcher, Done
from service.encoding import encode
from service.engine import Floats, Scores, expit
from service.errors import DeadlineExceeded, Invalid, NotReady, Problem, Unavailable
from service.features import BehaviourStore, Stored
from service.lineup import Lineup
from service.recorded import Recorded
from service.registry import Registry
from service.score_log import Noted, ScoreLog
from service.shadow import Shadow
from service.telemetry import Telemetry
from service.traces import Trace
from service.verify import Version
from service.wire import Answer, Ask, Because, Form

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# Above this many bytes a body is read and encoded in a thread: it takes milliseconds.
INLINE_BYTES = 32_768
_PLACE_BITS = 32
_TOO_LATE = "The deadline passed before the model could run"
_log = logging.getLogger(__name__)


class Job(NamedTuple):
    """An encoded request for one version, and what it was encoded from."""

    version: Version
    request: Request
    batch: Batch
    explain: bool

    @property
    def behaviours(self) -> int:
        return int(self.batch.history.shape[1])


class Call(NamedTuple):
    """A request as it came, and the versions that were in service then."""

    form: Form
    body: bytes
    request_id: str
    started: float
    large: bool
    lineup: Lineup
    trace: Trace | None


def cost(jobs: Sequence[Job]) -> int:
    """Padded pairs of one call: users x most candidates x (longest history, at least 1)."""
    slots = max(job.batch.candidates for job in jobs)
    return len(jobs) * slots * max(1, *(job.behaviours for job in jobs))


def run(jobs: Sequence[Job]) -> list[Scores]:
    """One call of the model for jobs of one version; each job's own part of the scores."""
    scores = jobs[0].version.engine.run(
        merge([job.batch for job in jobs]), weight=any(job.explain for job in jobs)
    )
    if len(jobs) == 1:
        weight = scores.weight
        return [Scores(scores.logit, None if weight is None else weight[:, : jobs[0].behaviours])]
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
        recorded: Recorded,
        shadow: Shadow,
        telemetry: Telemetry,
        timeout_ms: int,
    ) -> None:
        self._registry, self._store, self._batcher, self._log = registry, store, batcher, log
        self._recorded, self._shadow = recorded, shadow
        self._telemetry, self._timeout_ms = telemetry, timeout_ms
        self._outcomes = cache(telemetry.by_label.labels)  # to look up is no cheaper than to count

    async def score(
        self,
        form: Form,
        body: bytes,
        request_id: str,
        started: float,
        trace: Trace | None = None,
    ) -> bytes:
        """The answer's body, in the request's form. ``started`` is of `perf_counter`; ``trace`` is
        told of the stages.

        What a canary can't answer is answered by the stable version. Raises `Problem`.
        """
        lineup = self._registry.lineup
        if lineup is None:
            raise NotReady("No verified model yet")
        large = len(body) > INLINE_BYTES
        stable = lineup.stable
        asked = await _perform(large, form.read, body, stable.schema)
        version = lineup.pick(asked.user)
        call = Call(form, body, request_id, started, large, lineup, trace)
        if version is stable:
            return await self._counted(call, asked, stable)
        try:
            mine = asked
            if version.schema.fingerprint != stable.schema.fingerprint:
                mine = await _perform(large, form.read, body, version.schema)
            return await self._counted(call, mine, version)
        except (DeadlineExceeded, Unavailable):
            raise
        except Exception as error:
            _log.warning("a request is taken from the canary: %s", type(error).__name__)
            found = await self._counted(call, asked, stable)
            if isinstance(error, Invalid):  # the stable version took it, so it was the canary
                self._report(call, version, failed=True)
            return found

    async def _counted(self, call: Call, asked: Ask, version: Version) -> bytes:
        """An answer, and how it went for the version. What callers do wrong is not its fault."""
        try:
            found = await self._answer(call, asked, version)
        except Problem as problem:
            if isinstance(problem, DeadlineExceeded):
                self._report(call, version, failed=True)
            raise
        except Exception:
            self._report(call, version, failed=True)
            raise
        self._report(call, version, failed=False)
        return found

    def _report(self, call: Call, version: Version, *, failed: bool) -> None:
        label = "stable" if version is call.lineup.stable else "canary"
        self._outcomes(label, "failed" if failed else "answered").inc()
        self._registry.report(version, failed=failed)

    async def _answer(self, call: Call, asked: Ask, version: Version) -> bytes:
        """A version's answer. Raises `Problem`, and what the engine raises."""
        left = (asked.timeout_ms or self._timeout_ms) / 1e3 - (perf_counter() - call.started)
        if left <= 0:
            raise DeadlineExceeded(_TOO_LATE, "body")
        deadline = asyncio.get_running_loop().time() + left
        received = int(time() * 1000)  # before the store is read: an erasure from then on counts
        asking = perf_counter()
        stored = await self._stored(call, asked, version, left)
        encoding = perf_counter()
        job, known, stored = await _perform(call.large, _encode, call.form, asked, version, stored)
        encoded = perf_counter()
        if encoded - asking >= left:
            raise DeadlineExceeded(_TOO_LATE, "features")
        if call.trace is not None:
            call.trace.stage("encode", encoding, encoded)
        done = await self._run(call, job, deadline)
        self._telemetry.store_seconds.observe(encoding - asking)
        self._telemetry.encode_seconds.observe(encoded - encoding)
        unknown = np.flatnonzero(~known)
        self._count(job, len(unknown), stored, done)
        total = perf_counter() - call.started
        answer = Answer(
            request_id=call.request_id,
            model=version.name,
            version=version.number,
            history_length=job.behaviours,
            degraded=stored.degraded,
            tasks=version.schema.tasks,
            probability=expit(done.answer.logit),
            unknown=unknown,
            because=_because(asked, version, stored.history, done.answer.weight),
            timing_ms={
                "store": round((encoding - asking) * 1e3, 3),
                "queue": round(done.queue_seconds * 1e3, 3),
                "model": round(done.run_seconds * 1e3, 3),
                "total": round(total * 1e3, 3),
            },
        )
        if self._log.wants(call.request_id):
            self._log.add(Noted(asked, answer, version, job.request, job.batch, received))
        self._recorded.note(asked, stored, version.encoder.codec, len(call.body))
        beside = call.lineup.shadow_for(call.request_id) if version is call.lineup.stable else None
        if beside is not None:
            read = partial(call.form.read, call.body)
            self._shadow.offer(beside, read, asked, stored, version, answer.probability)
        return call.form.write(asked, answer)

    async def _run(self, call: Call, job: Job, deadline: float) -> Done[Scores]:
        """What the batcher makes of a job; the trace knows how it went. Raises what it raises."""
        if call.trace is None:
            return await self._batcher.submit(job, deadline)
        asking = perf_counter()
        about: dict[str, Any] = {
            "dinserve.model": job.version.name,
            "dinserve.version": job.version.number,
        }
        try:
            done = await self._batcher.submit(job, deadline)
        except Exception as error:
            at = "queue" if isinstance(error, Unavailable) else getattr(error, "stage", "model")
            call.trace.stage(at, asking, perf_counter(), type(error).__name__, **about)
            raise
        running = asking + done.queue_seconds
        about["dinserve.call.requests"] = done.members
        call.trace.stage("queue", asking, running)
        call.trace.stage("model", running, running + done.run_seconds, **about)
        return done

    async def _stored(self, call: Call, asked: Ask, version: Version, left: float) -> Stored:
        """What the store has to add to a request; it is not asked for nothing."""
        schema, codec = version.schema, version.encoder.codec
        in_store = asked.history is None
        lacks = any(field.name not in asked.overrides for field in schema.user)
        if not in_store and not lacks:
            return Stored(codec.empty())
        # Half of the time left, so that a store that hangs leaves some for the model.
        asking = perf_counter()
        found = await self._store.read(asked.user, schema, codec, history=in_store, budget=left / 2)
        if call.trace is not None:
            call.trace.stage("redis", asking, perf_counter(), found.degraded)
        return found

    def _count(self, job: Job, unknown: int, stored: Stored, done: Done[Scores]) -> None:
        telemetry = self._telemetry
        telemetry.candidates.observe(job.batch.candidates)
        telemetry.history_length.observe(job.behaviours)
        telemetry.queue_seconds.observe(done.queue_seconds)
        telemetry.model_seconds.observe(done.run_seconds)
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
    try:
        found = encode(asked, stored, version.encoder)
    except FieldError as error:
        raise Invalid(f"Expected {error.expected}", form.named(error.field)) from None
    return Job(version, found.request, found.batch, asked.explain > 0), found.known, found.stored


def _because(
    asked: Ask, version: Version, records: Records, weight: Floats | None
) -> Because | None:
    """For each candidate the behaviours of the largest |weight|, the largest first."""
    if not asked.explain:
        return None
    if weight is None:
        weight = np.zeros((len(asked.candidates), 0), np.float32)
    count, length = weight.shape
    # A number for each weight, to be sorted: its magnitude's bits, then its place from the end.
    ranked = np.abs(weight).view(np.uint32).astype(np.uint64)
    ranked <<= _PLACE_BITS
    ranked |= np.arange(length - 1, -1, -1, dtype=np.uint64)
    ranked.sort(axis=1)
    largest = ranked[:, length - min(asked.explain, length) :][:, ::-1].astype(np.uint32)
    places = length - 1 - largest.astype(np.int64)
    first = np.arange(count)[:, None] * length  # of each candidate's weights
    chosen = weight.reshape(-1).take(places + first)
    used = np.zeros(length, np.bool_)
    used[places] = True
    return Because(places, chosen, _names(asked, version, records, np.flatnonzero(used)))


def _names(
    asked: Ask, version: Version, records: Records, positions: npt.NDArray[np.int64]
) -> Mapping[int, str | int | None]:
    """The raw item ids of behaviours, by their position among those looked at."""
    length = version.schema.history_length
    if asked.history is not None:
        in_time = sorted(asked.history, key=lambda behaviour: int(behaviour["ts"]))[-length:]
        return {at: in_time[at]["item_id"] for at in positions.tolist()}
    catalogue = version.encoder.catalogue
    found = catalogue.names_of(recent(records, length)["item_id"][positions])
    return dict(zip(positions.tolist(), found, strict=True))

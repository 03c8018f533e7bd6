"""The application: where all parts are put together, opened and closed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from model.contract.store import PARTITIONS
from service.batcher import Batcher
from service.cores import cores
from service.drain import Drain
from service.engine import EngineError, OnnxEngine, Scores, pick_provider
from service.event_routes import event_routes
from service.events import EventLog
from service.features import HISTORY_UNAVAILABLE, PROFILE_UNAVAILABLE, BehaviourStore, Breaker
from service.problems import answer_problems
from service.readiness import Readiness
from service.recorded import Recorded
from service.registry import Registry
from service.routes import count_problem, routes, score_endpoints, score_paths
from service.score_log import ScoreLog
from service.scorer import Job, Scorer, cost, run
from service.settings import Settings
from service.shadow import Shadow
from service.telemetry import Telemetry
from service.traces import Traced, Traces
from service.trial import Trial
from service.verify import OpenEngine

if TYPE_CHECKING:
    from service.mirrored import Mirrored

_FRESH_SECONDS = 1.0
_STORE_SECONDS = 1.0
_DAY_MS = 86_400_000
_log = logging.getLogger(__name__)


class Application(FastAPI):
    """FastAPI, whose ``direct`` routes get their POST requests without it."""

    direct: Mapping[str, ASGIApp]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = None
        if scope["type"] == "http" and scope["method"] == "POST":
            endpoint = self.direct.get(scope["path"])
        await (endpoint or super().__call__)(scope, receive, send)


def create_app(
    settings: Settings,
    *,
    open_engine: OpenEngine | None = None,
    telemetry: Telemetry | None = None,
    hold: Callable[[], bool] | None = None,
    drain: Drain | None = None,
) -> Application:
    """The service as an ASGI application. Raises `EngineError` for a provider that is not there,
    `TracesError` where traces are wanted and can't be sent, and `MirrorError`.

    ``open_engine`` opens a graph; by default in onnxruntime on the settings' provider.
    ``telemetry`` is given by one of several workers, and with it ``hold``: the application starts
    only after versions were looked for once and, as long as it says so, one is served. ``drain`` is
    that of the server around it.
    """
    telemetry = telemetry or Telemetry()
    provider = pick_provider(settings.provider)
    on_device = provider == "cuda"
    if on_device and settings.workers > 1:
        raise EngineError("workers: one process owns a GPU; take --workers 1 or --provider cpu")
    recorded, shadow = Recorded(), Shadow(telemetry)
    breaker = Breaker(settings.breaker_failures, settings.breaker_seconds)
    telemetry.follow(telemetry.breaker_open, lambda: breaker.open)
    for reason in (HISTORY_UNAVAILABLE, PROFILE_UNAVAILABLE):
        telemetry.degraded.labels(reason)  # told as 0 from the start, as others are
    store = BehaviourStore(
        settings.redis_url,
        prefix=settings.key_prefix,
        timeout=settings.store_timeout_ms / 1e3,
        connections=settings.store_connections,
        breaker=breaker,
        on_failure=lambda reason: telemetry.store_failures.labels(reason).inc(),
    )
    events = EventLog(
        settings.redis_url,
        prefix=settings.key_prefix,
        timeout=settings.event_timeout_ms / 1e3,
        connections=settings.store_connections,
        horizon_ms=settings.history_days * _DAY_MS,
        tombstone_ms=settings.erased_days * _DAY_MS,
        limit=settings.log_entries // PARTITIONS,
        on_failure=lambda reason: telemetry.write_failures.labels(reason).inc(),
    )
    registry = Registry(
        settings.repository,
        settings.name,
        open_engine=open_engine
        or partial(OnnxEngine.open, provider=provider, threads=settings.threads),
        telemetry=telemetry,
        recorded=recorded,
        trial=Trial(settings.canary_band, settings.canary_requests),
        max_bytes=settings.max_bundle_bytes,
        tell=events.tell_withdrawn,
    )
    mirrored = _mirrored(settings, telemetry)

    def call(jobs: Sequence[Job]) -> list[Scores]:
        telemetry.calls.inc()
        telemetry.call_requests.observe(len(jobs))
        telemetry.call_pairs.observe(cost(jobs))
        return run(jobs)

    batcher: Batcher[Job, Scores] = Batcher(
        call,
        cost=cost,
        group=lambda job: job.version,
        merge_limit=lambda job: (
            job.version.merge_limit if settings.merge_pairs is None else settings.merge_pairs
        ),
        queue_limit=settings.max_queued_pairs,
        workers=settings.runs(on_device),
    )
    telemetry.follow(telemetry.queued_pairs, lambda: batcher.queued)
    telemetry.follow(telemetry.queued_requests, lambda: batcher.length)
    readiness = Readiness(registry, batcher, store, drain or Drain(), settings.ready_without_redis)
    telemetry.follow(telemetry.ready, lambda: not readiness.trouble)
    traces = Traces(settings.traces) if settings.traces else None
    score_log = ScoreLog(events, share=settings.log_share, telemetry=telemetry)
    scorer = Scorer(
        registry=registry,
        store=store,
        batcher=batcher,
        log=score_log,
        recorded=recorded,
        shadow=shadow,
        telemetry=telemetry,
        timeout_ms=settings.timeout_ms,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        _log.info(
            "provider %s, %d threads, %d runs, %d cores",
            *(provider, settings.threads, batcher.workers, cores()),
        )
        async with (
            traces or nullcontext(),
            mirrored or nullcontext(),
            store,
            events,
            score_log,
            batcher,
            shadow,
        ):
            if hold is not None:
                await registry.renew()
                while registry.current is None and hold():
                    await asyncio.sleep(settings.poll_seconds)
                    await registry.renew()
            tasks = [
                asyncio.create_task(registry.watch(settings.poll_seconds), name="registry"),
                asyncio.create_task(store.watch(_STORE_SECONDS), name="store"),
                asyncio.create_task(telemetry.keep_fresh(_FRESH_SECONDS), name="telemetry"),
            ]
            yield
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    app = Application(
        title="dinserve",
        description="Click probabilities of candidates for one user, by a Deep Interest Network.",
        version="1",
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.include_router(
        event_routes(settings, registry=registry, events=events, telemetry=telemetry)
    )
    app.include_router(routes(settings, readiness=readiness, telemetry=telemetry))
    answer_problems(app, partial(count_problem, telemetry))
    document = app.openapi()
    document["paths"] = {**score_paths(), **document["paths"]}
    scores = score_endpoints(settings, scorer, telemetry)
    app.router.routes += [Route(path, each, methods=["POST"]) for path, each in scores.items()]
    app.direct = scores if traces is None else {p: Traced(e, traces) for p, e in scores.items()}
    if traces is not None:
        app.add_middleware(Traced, traces=traces)
    return app


def _mirrored(settings: Settings, telemetry: Telemetry) -> Mirrored | None:
    """What brings the repository here, where it is elsewhere. Raises `MirrorError`."""
    if settings.mirror is None:
        return None
    from service.mirrored import Mirrored  # fsspec comes with an extra

    return Mirrored(
        settings.mirror,
        settings.repository,
        settings.name,
        every=settings.poll_seconds,
        max_bytes=settings.max_bundle_bytes,
        telemetry=telemetry,
    )

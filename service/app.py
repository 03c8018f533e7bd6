"""The application: where all parts are put together, opened and closed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI

from service.batcher import Batcher
from service.engine import OnnxEngine, Scores, pick_provider
from service.features import BehaviourStore, Breaker
from service.registry import OpenEngine, Registry
from service.routes import answer_problems, routes
from service.scorer import Job, Scorer, cost, run
from service.settings import Settings
from service.telemetry import Telemetry

_log = logging.getLogger(__name__)


def create_app(settings: Settings, *, open_engine: OpenEngine | None = None) -> FastAPI:
    """The service as an ASGI application. Raises `EngineError` for a provider that is not there.

    ``open_engine`` opens a graph; by default in onnxruntime on the settings' provider.
    """
    telemetry = Telemetry()
    provider = pick_provider(settings.provider)
    on_device = provider == "cuda"
    registry = Registry(
        settings.repository,
        settings.name,
        open_engine=open_engine
        or partial(OnnxEngine.open, provider=provider, threads=settings.threads),
        telemetry=telemetry,
    )
    breaker = Breaker(settings.breaker_failures, settings.breaker_seconds)
    telemetry.breaker_open.set_function(lambda: float(breaker.open))
    store = BehaviourStore(
        settings.redis_url,
        prefix=settings.key_prefix,
        timeout=settings.store_timeout_ms / 1e3,
        connections=settings.store_connections,
        breaker=breaker,
        on_failure=lambda reason: telemetry.store_failures.labels(reason).inc(),
    )

    def call(jobs: Sequence[Job]) -> list[Scores]:
        telemetry.calls.inc()
        telemetry.call_requests.observe(len(jobs))
        telemetry.call_pairs.observe(cost(jobs))
        return run(jobs)

    batcher: Batcher[Job, Scores] = Batcher(
        call,
        cost=cost,
        group=lambda job: job.version,
        merge_limit=settings.merges(on_device),
        queue_limit=settings.max_queued_pairs,
        workers=settings.runs(on_device),
    )
    scorer = Scorer(
        registry=registry,
        store=store,
        batcher=batcher,
        telemetry=telemetry,
        timeout_ms=settings.timeout_ms,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        _log.info("provider %s, %d threads, %d runs", provider, settings.threads, batcher.workers)
        async with store, batcher:
            watching = asyncio.create_task(registry.watch(settings.poll_seconds), name="registry")
            yield
            watching.cancel()
            await asyncio.wait([watching])

    app = FastAPI(
        title="dinserve",
        description="Click probabilities of candidates for one user, by a Deep Interest Network.",
        version="1",
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.include_router(
        routes(settings, scorer=scorer, registry=registry, batcher=batcher, telemetry=telemetry)
    )
    answer_problems(app, telemetry)
    return app

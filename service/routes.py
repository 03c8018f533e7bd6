"""The routes: HTTP in, HTTP out. Bodies are read here, with a limit on bytes and time."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from time import perf_counter
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, TypeAdapter
from starlette.types import Receive, Scope, Send

from service.binary import BINARY
from service.columns import COLUMNS, ColumnsRequest, ColumnsResponse
from service.cores import cores
from service.errors import (
    BodyTimeout,
    BodyTooLarge,
    DeadlineExceeded,
    Malformed,
    NotJson,
    NotReady,
    Problem,
    Unavailable,
)
from service.limit import Limit
from service.lineup import Lineup
from service.problems import JSON, answer_to, header, json_response, request_id
from service.readiness import Readiness
from service.rows import ROWS, ScoreRequest, ScoreResponse
from service.scorer import Scorer
from service.settings import Settings
from service.telemetry import Telemetry
from service.traces import trace_of
from service.wire import Form, ProblemDocument, read_parts

_SCORES = ("/score", "/score/columns")
_SCORED = "Scores in the order of the candidates"

_PROBLEMS = {
    400: "The body is not JSON",
    408: "The body did not arrive in time",
    413: "The body is over the limit",
    415: "The body is not declared as what it should be",
    422: "A field is not what it should be; `field` names it",
    500: "Ours; the request id finds it in the log",
    503: "Not ready or overloaded; try again after Retry-After seconds",
    504: "The deadline passed; the model was not run, or its score came too late",
}


def score_endpoints(
    settings: Settings, scorer: Scorer, telemetry: Telemetry
) -> dict[str, ScoreEndpoint]:
    """What answers with scores, by path."""
    endpoint = partial(ScoreEndpoint, settings, scorer, telemetry)
    return {"/score": endpoint(ROWS), "/score/columns": endpoint(COLUMNS, BINARY)}


class ScoreEndpoint:
    """One score route, an ASGI application of its own: what FastAPI and Starlette do for each
    request costs more than to read it."""

    def __init__(
        self, settings: Settings, scorer: Scorer, telemetry: Telemetry, *forms: Form
    ) -> None:
        self._settings, self._scorer = settings, scorer
        self._count = partial(count_problem, telemetry)
        self._seconds, self._answered = telemetry.request_seconds, telemetry.requests.labels("200")
        self._forms = {form.media_type.encode(): form for form in forms}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = perf_counter()
        identity, trace = request_id(scope), trace_of(scope)
        if trace is not None:
            trace.route = scope["path"]
        try:
            kind = self._kind(scope)
            body = await read_body(scope, receive, self._settings)
            found = await self._scorer.score(self._forms[kind], body, identity, started, trace)
        except Exception as error:
            response = answer_to(error, Request(scope), self._count)
            await response(scope, receive, send)
            if not isinstance(error, Problem):
                raise
            return
        self._seconds.observe(perf_counter() - started)
        self._answered.inc()
        headers = [
            (b"x-request-id", identity.encode()),
            (b"content-length", b"%d" % len(found)),
            (b"content-type", kind),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": found})

    def _kind(self, scope: Scope) -> bytes:
        """The media type of the body's form. Raises `NotJson`."""
        kind = header(scope, b"content-type")
        if kind not in self._forms:
            expected = (each.decode() for each in self._forms)
            kind = _media_type(kind, *expected).encode()
        return kind


def count_problem(
    telemetry: Telemetry, request: Request, status: int, problem: Problem | None
) -> None:
    """Count a score request that was answered with a problem."""
    if request.url.path not in _SCORES:
        return
    telemetry.requests.labels(str(status)).inc()
    if isinstance(problem, Unavailable):
        telemetry.shed.labels(problem.reason).inc()
    elif isinstance(problem, DeadlineExceeded):
        telemetry.expired.labels(problem.stage).inc()


def score_paths() -> dict[str, Any]:
    """What /openapi.json says of `score_endpoints`."""
    return {
        "/score": {
            "post": {
                "summary": "Click probabilities of candidates for one user",
                "operationId": "score",
                **document(ScoreRequest, ScoreResponse, done=_SCORED),
            }
        },
        "/score/columns": {
            "post": {
                "summary": "The same in columns, as JSON or binary: the fast form",
                "description": "Binary where that is the Content-Type: see docs/wire.md.",
                "operationId": "score_columns",
                **document(ColumnsRequest, ColumnsResponse, BINARY.media_type, done=_SCORED),
            }
        },
    }


def routes(settings: Settings, *, readiness: Readiness, telemetry: Telemetry) -> APIRouter:
    """The routes that say how the service is."""
    router = APIRouter()

    @router.get("/healthz", response_class=Response, summary="The process lives")
    async def healthz(request: Request) -> Response:
        return json_response(b'{"status":"alive"}', request)

    @router.get("/readyz", response_class=Response, summary="A verified and warm model is served")
    async def readyz(request: Request) -> Response:
        version = readiness.registry.current
        if version is None or readiness.trouble:
            raise NotReady(readiness.trouble)
        state = {
            "status": "ready",
            "model": version.name,
            "version": version.number,
            **_beside(readiness.registry.lineup),
            "schema": version.schema.fingerprint,
            "provider": version.engine.provider,
            "threads": settings.threads,
            "runs": readiness.batcher.workers,
            "workers": settings.workers,
            "cores": cores(),
            "pid": os.getpid(),
        }
        return json_response(orjson.dumps(state), request)

    @router.get("/metrics", response_class=Response, summary="Metrics for Prometheus")
    async def metrics() -> Response:
        found = await asyncio.to_thread(telemetry.render)
        return Response(found, headers={"Content-Type": CONTENT_TYPE_LATEST})

    return router


def _beside(lineup: Lineup | None) -> dict[str, Any]:
    """What /readyz says of canary and shadow, where there are any."""
    return {
        label: {"version": version.number, "share": getattr(lineup, f"{label}_share")}
        for label in ("canary", "shadow")
        if (version := getattr(lineup, label, None)) is not None
    }


def _media_type(declared: bytes | None, *expected: str) -> str:
    """That of the body, JSON without one. Raises `NotJson` for none of those expected."""
    text = JSON if declared is None else declared.decode("latin-1")
    kind = text.partition(";")[0].strip().lower()
    if kind.startswith("application/") and kind.endswith("+json"):
        kind = JSON
    if kind not in expected:
        raise NotJson(f"Content-Type: {' or '.join(expected)} expected", "Content-Type")
    return kind


async def json_body(request: Request, settings: Settings) -> Any:
    """The value of a JSON body, as `read_parts` has it. Raises `NotJson` and what `read_body` and
    `read_parts` raise."""
    _media_type(header(request.scope, b"content-type"), JSON)
    return read_parts(await read_body(request.scope, request.receive, settings))


async def read_body(scope: Scope, receive: Receive, settings: Settings) -> bytes:
    """The whole body. Raises `NotJson`, `BodyTooLarge`, `BodyTimeout` and `Malformed`."""
    if (header(scope, b"content-encoding") or b"identity").lower() != b"identity":
        raise NotJson("A body that is not compressed expected", "Content-Encoding")
    limit = settings.max_body_bytes
    declared = header(scope, b"content-length") or b""
    if declared.isdigit() and int(declared[:19]) > limit:
        raise _too_large(limit)
    chunks, size, more = [], 0, True
    try:
        with Limit(settings.body_timeout_seconds):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Malformed("The body ended early", "body")
                chunks.append(message.get("body", b""))
                size += len(chunks[-1])
                more = message.get("more_body", False)
                if size > limit:
                    raise _too_large(limit)
    except TimeoutError:
        raise BodyTimeout("The body did not arrive in time", "body") from None
    return b"".join(chunks)


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"A body has at most {limit} bytes", "body")


def document(
    asked: Any, answer: type[BaseModel], *binary: str, done: str = "Done"
) -> dict[str, Any]:
    """What /docs says of a route, whose body, one of ``asked`` if any, is not read by FastAPI."""
    raw = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in binary}

    def content(kind: str, model: Any, mode: Any) -> dict[str, Any]:
        return {kind: {"schema": inline(TypeAdapter(model).json_schema(mode=mode))}}

    body = {"required": True, "content": {**content(JSON, asked, "validation"), **raw}}
    return {
        **({"requestBody": body} if asked is not None else {}),
        "responses": {
            "200": {
                "description": done,
                "content": {**content(JSON, answer, "serialization"), **raw},
            },
            **{
                str(status): {
                    "description": text,
                    "content": content("application/problem+json", ProblemDocument, "validation"),
                }
                for status, text in _PROBLEMS.items()
            },
        },
    }


def inline(document: dict[str, Any]) -> Any:
    """A JSON schema with its own $defs put in place of the references to them."""
    definitions = document.pop("$defs", {})

    def resolve(node: Any) -> Any:
        if isinstance(node, dict):
            if "$ref" in node:
                return resolve(definitions[node["$ref"].rpartition("/")[2]])
            return {key: resolve(value) for key, value in node.items()}
        return [resolve(each) for each in node] if isinstance(node, list) else node

    return resolve(document)

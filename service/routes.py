"""The routes: HTTP in, HTTP out. Bodies are read here, with a limit on bytes and time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from functools import partial
from time import perf_counter
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, TypeAdapter
from starlette.requests import ClientDisconnect
from starlette.routing import Route
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
from service.lineup import Lineup
from service.problems import JSON, REQUEST_ID, json_response, request_id
from service.readiness import Readiness
from service.rows import ROWS, ScoreRequest, ScoreResponse
from service.scorer import Scorer
from service.settings import Settings
from service.telemetry import Telemetry
from service.traces import trace_of
from service.wire import Form, ProblemDocument, read_json

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


def score_routes(settings: Settings, scorer: Scorer, telemetry: Telemetry) -> list[Route]:
    """The routes that answer with scores."""
    endpoint = partial(ScoreEndpoint, settings, scorer, telemetry)
    return [
        Route("/score", endpoint(ROWS), methods=["POST"]),
        Route("/score/columns", endpoint(COLUMNS, BINARY), methods=["POST"]),
    ]


class ScoreEndpoint:
    """One score route as plain ASGI: FastAPI would look for parameters, and there are none."""

    def __init__(
        self, settings: Settings, scorer: Scorer, telemetry: Telemetry, *forms: Form
    ) -> None:
        self._settings, self._scorer, self._telemetry = settings, scorer, telemetry
        self._forms = {form.media_type: form for form in forms}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = perf_counter()
        request = Request(scope, receive)
        form = _form(request, self._forms)
        body = await read_body(request, self._settings)
        found = await self._scorer.score(form, body, request_id(request), started, trace_of(scope))
        headers = {REQUEST_ID: request_id(request)}
        response = Response(found, media_type=form.media_type, headers=headers)
        self._telemetry.request_seconds.observe(perf_counter() - started)
        self._telemetry.requests.labels("200").inc()
        await response(scope, receive, send)


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
    """What /openapi.json says of `score_routes`."""
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


def _form(request: Request, forms: Mapping[str, Form]) -> Form:
    """The form that the Content-Type names; JSON without one. Raises `NotJson`."""
    return forms[_media_type(request, *forms)]


def _media_type(request: Request, *expected: str) -> str:
    """That of the body, JSON without one. Raises `NotJson` for none of those expected."""
    kind = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
    if kind.startswith("application/") and kind.endswith("+json"):
        kind = JSON
    if kind not in expected:
        raise NotJson(f"Content-Type: {' or '.join(expected)} expected", "Content-Type")
    return kind


async def json_body(request: Request, settings: Settings) -> Any:
    """The value of a JSON body. Raises `NotJson` and what `read_body` and `read_json` raise."""
    _media_type(request, JSON)
    return read_json(await read_body(request, settings))


async def read_body(request: Request, settings: Settings) -> bytes:
    """The whole body. Raises `BodyTooLarge` and `BodyTimeout`."""
    limit = settings.max_body_bytes
    too_large = BodyTooLarge(f"A body has at most {limit} bytes", "body")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:19]) > limit:
        raise too_large
    chunks, size = [], 0
    try:
        async with asyncio.timeout(settings.body_timeout_seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise too_large
                chunks.append(chunk)
    except TimeoutError:
        raise BodyTimeout("The body did not arrive in time", "body") from None
    except ClientDisconnect:
        raise Malformed("The body ended early", "body") from None
    return b"".join(chunks)


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

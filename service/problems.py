"""Problems: every error of an application becomes application/problem+json (RFC 9457)."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping

import orjson
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from service.errors import Internal, Problem
from service.logs import REQUEST

JSON = "application/json"
REQUEST_ID = "X-Request-ID"
_MAX_REQUEST_ID = 128
_log = logging.getLogger(__name__)


def answer_problems(
    app: FastAPI,
    count: Callable[[Request, int, Problem | None], object] = lambda request, status, problem: None,
) -> None:
    """Make every error a problem; ``count`` is told its status, and what it is if ours."""

    async def problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)
        count(request, error.status, error)
        if error.status >= 500 and error.__cause__ is not None:
            _log.error("request %s failed", request_id(request), exc_info=error)
        return problem_response(request, error.status, error.title, error.detail, problem=error)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        count(request, error.status_code, None)
        title = str(error.detail)
        return problem_response(request, error.status_code, title, title, headers=error.headers)

    async def unexpected(request: Request, error: Exception) -> Response:
        count(request, 500, None)
        _log.error("request %s failed", request_id(request))
        return problem_response(request, 500, Internal.title, Internal.title)

    app.add_exception_handler(Problem, problem)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unexpected)


def request_id(request: Request) -> str:
    """The caller's X-Request-ID where it can be echoed (1 to 128 visible ASCII characters)."""
    found: str | None = getattr(request.state, "request_id", None)
    if found is None:
        found = request.headers.get(REQUEST_ID, "")
        sane = 0 < len(found) <= _MAX_REQUEST_ID and all("!" <= each <= "~" for each in found)
        request.state.request_id = found = found if sane else uuid.uuid4().hex
        REQUEST.set(found)
    return found


def json_response(body: bytes, request: Request) -> Response:
    return Response(body, media_type=JSON, headers={REQUEST_ID: request_id(request)})


def problem_response(
    request: Request,
    status: int,
    title: str,
    detail: str,
    *,
    problem: Problem | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An RFC 9457 answer. A body that was not read through ends the connection."""
    identity = request_id(request)
    sent = {**(headers or {}), REQUEST_ID: identity}
    if problem is not None and problem.retry_after is not None:
        sent["Retry-After"] = str(max(1, round(problem.retry_after)))
    if status in {408, 413, 415}:
        sent["Connection"] = "close"
    body = {
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": detail,
        "field": problem.field if problem is not None else None,
        "request_id": identity,
    }
    return Response(orjson.dumps(body), status, sent, "application/problem+json")

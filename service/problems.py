"""Problems: every error of an application becomes application/problem+json (RFC 9457)."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping

import orjson
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import Scope

from service.errors import Internal, Problem
from service.logs import REQUEST

JSON = "application/json"
REQUEST_ID = "X-Request-ID"
Count = Callable[[Request, int, Problem | None], object]

_REQUEST_ID = "dinserve.request_id"
_SANE = re.compile(rb"[!-~]{1,128}")
_log = logging.getLogger(__name__)


def answer_problems(app: FastAPI, count: Count = lambda request, status, problem: None) -> None:
    """Make every error a problem; ``count`` is told its status, and what it is if ours."""

    async def answer(request: Request, error: Exception) -> Response:
        return answer_to(error, request, count)

    for kind in (Problem, HTTPException, Exception):
        app.add_exception_handler(kind, answer)


def answer_to(error: Exception, request: Request, count: Count) -> Response:
    """An error as a problem, counted. What is ours is logged, but for the traceback of one that is
    not expected: who serves the application logs that."""
    if isinstance(error, Problem):
        count(request, error.status, error)
        if error.status >= 500 and error.__cause__ is not None:
            _log.error("request %s failed", request_id(request.scope), exc_info=error)
        return problem_response(request, error.status, error.title, error.detail, problem=error)
    if isinstance(error, HTTPException):
        count(request, error.status_code, None)
        title = str(error.detail)
        return problem_response(request, error.status_code, title, title, headers=error.headers)
    count(request, 500, None)
    _log.error("request %s failed", request_id(request.scope))
    return problem_response(request, 500, Internal.title, Internal.title)


def header(scope: Scope, name: bytes) -> bytes | None:
    """The first header of a name, in lower case."""
    for each, value in scope["headers"]:
        if each == name:
            return bytes(value)
    return None


def request_id(scope: Scope) -> str:
    """The caller's X-Request-ID where it can be echoed (1 to 128 visible ASCII characters)."""
    found: str | None = scope.get(_REQUEST_ID)
    if found is None:
        given = header(scope, b"x-request-id") or b""
        found = given.decode() if _SANE.fullmatch(given) else os.urandom(16).hex()
        scope[_REQUEST_ID] = found
        REQUEST.set(found)
    return found


def json_response(body: bytes, request: Request) -> Response:
    return Response(body, media_type=JSON, headers={REQUEST_ID: request_id(request.scope)})


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
    identity = request_id(request.scope)
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

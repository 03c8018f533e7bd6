"""The admin API: what the label commands do, over HTTP, on a port and with a key of its own.

It is a process beside the ones that score, which it never talks to: it writes the labels that they
follow, so they may see the repository read-only.
"""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Annotated, Any, TypeVar

from fastapi import Body, FastAPI, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field

from model.contract.labels import LabelError, Labels, UnpublishedError
from service.errors import Conflict, Internal, Invalid, Missing, Unauthorized
from service.problems import answer_problems, problem_response
from service.settings import Settings
from service.versions import RefusedError, Versions

Result = TypeVar("Result")
_OPEN = "/healthz"
_log = logging.getLogger(__name__)


class Change(BaseModel):
    """A change and, for the log of changes, why."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    why: str = Field("", max_length=500)


class Share(Change):
    """A share of the traffic."""

    share: float = Field(ge=0, le=1, allow_inf_nan=False)


Number = Annotated[int, Path(ge=0, description="a published version")]
Reason = Annotated[Change, Body(default_factory=Change)]


def create_admin(settings: Settings) -> FastAPI:
    """The admin API of the settings' model.

    Raises `RepositoryError`, and ValueError without a key.
    """
    if settings.admin_key is None:
        raise ValueError("admin: DINSERVE_ADMIN_KEY expected, at least 16 characters")
    expected = f"Bearer {settings.admin_key.get_secret_value()}".encode()
    versions = Versions.of(settings, by="admin API")

    app = FastAPI(
        title="dinserve admin",
        description="Labels of a model's versions: stable, canary, shadow.",
        version="1",
        redirect_slashes=False,
    )

    @app.middleware("http")
    async def keyed(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        """Before the body is read: who does not know the key gets nothing done here."""
        given = request.headers.get("authorization", "").encode("latin-1", "replace")
        if request.url.path == _OPEN or hmac.compare_digest(given, expected):
            return await call_next(request)
        problem = Unauthorized("The admin key expected, as a bearer token", "Authorization")
        headers = {"WWW-Authenticate": "Bearer"}
        return problem_response(
            request, problem.status, problem.title, problem.detail, problem=problem, headers=headers
        )

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        unknown = first["type"] == "extra_forbidden"  # a name of the sender's own: not echoed
        field = "body" if unknown or len(first["loc"]) < 2 else str(first["loc"][-1])
        if first["type"] == "json_invalid":
            field = "body"
        detail = "Unknown field" if unknown else first["msg"]
        if first["type"] == "model_attributes_type":  # as of curl -d, which sends a form
            detail = "A JSON object expected, as Content-Type: application/json"
        problem = Invalid(detail, field)
        return problem_response(
            request, problem.status, problem.title, problem.detail, problem=problem
        )

    @app.get(_OPEN, summary="The process lives; needs no key")
    def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/models", summary="The versions, the newest first")
    def models() -> dict[str, Any]:
        listed = _done(versions.listed)
        return {
            "model": versions.repository.name,
            "versions": [each.document(time.time()) for each in listed],
        }

    @app.get("/labels", summary="The labels and the log of their changes")
    def labels() -> dict[str, Any]:
        return asdict(_done(versions.labels))

    @app.post("/models/{version}/promote", summary="Make it the stable version")
    def promote(version: Number, change: Reason) -> dict[str, Any]:
        return _changed(lambda: versions.promote(version, change.why))

    @app.post("/models/{version}/pin", summary="Make it stable for all, and hold it")
    def pin(version: Number, change: Reason) -> dict[str, Any]:
        return _changed(lambda: versions.pin(version, change.why))

    @app.post("/models/{version}/canary", summary="Give it a share of the users")
    def canary(version: Number, change: Share) -> dict[str, Any]:
        return _changed(lambda: versions.canary(version, change.share, change.why))

    @app.post("/models/{version}/shadow", summary="Score it beside the stable one")
    def shadow(version: Number, change: Share) -> dict[str, Any]:
        return _changed(lambda: versions.shadow(version, change.share, change.why))

    @app.post("/rollback", summary="Make the version before stable again")
    def rollback(change: Reason) -> dict[str, Any]:
        return _changed(lambda: versions.rollback(change.why))

    @app.post("/unpin", summary="Release a pinned version")
    def unpin(change: Reason) -> dict[str, Any]:
        return _changed(lambda: versions.file.unpin(change.why))

    @app.post("/follow", summary="Serve the newest valid version again")
    def follow(change: Reason) -> dict[str, Any]:
        return _changed(lambda: versions.file.follow(change.why))

    @app.delete("/canary", summary="End the canary")
    def stop_canary(change: Reason) -> dict[str, Any]:
        return _changed(lambda: versions.file.stop_canary(change.why))

    @app.delete("/shadow", summary="End the shadow")
    def stop_shadow(change: Reason) -> dict[str, Any]:
        return _changed(lambda: versions.file.stop_shadow(change.why))

    answer_problems(app)
    return app


def _changed(step: Callable[[], Labels]) -> dict[str, Any]:
    """The labels after a change, which is logged."""
    found = _done(step)
    latest = found.changes[-1].what if found.changes else "nothing"
    _log.info("labels asked to change; the last change: %s", latest)
    return asdict(found)


def _done(step: Callable[[], Result]) -> Result:
    """What a step gives. Raises what went wrong as a `Problem`."""
    try:
        return step()
    except UnpublishedError as error:
        raise Missing(str(error), "version") from None
    except RefusedError as error:
        raise Conflict(f"{error} ({error.reason})", "version") from None
    except LabelError as error:
        raise Conflict(str(error)) from None
    except OSError as error:
        raise Internal("The repository can't be read or written") from error

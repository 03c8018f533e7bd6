"""The routes of feedback: `POST /events` and `DELETE /users/{user_id}`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from model.contract.encode import Encoder
from service.errors import Invalid, NotReady
from service.events import EventLog, Result
from service.problems import json_response, request_id
from service.registry import Registry
from service.routes import document, json_body
from service.settings import Settings
from service.telemetry import Telemetry
from service.traces import staged
from service.wire import ID_SCHEMA, user_text

MAX_EVENTS = 1000

_USER_ID = {"name": "user_id", "in": "path", "required": True, "schema": {"type": "string"}}
Id = Annotated[Any, WithJsonSchema(ID_SCHEMA)]


class EventBody(BaseModel):
    """What a user did with an item, or was shown; any other field is an extra field: those of the
    schema's behaviour, context and ad fields are what a later model learns from."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "example": {
                "user_id": "42",
                "item_id": "1193",
                "action": "click",
                "ts": 1795305600,
                "request_id": "5f0c",
            }
        },
    )

    user_id: Id
    item_id: Id
    action: str = Field(description="impression, click, conversion, ...: an identifier")
    ts: int = Field(description="when it happened, in the schema's ts_unit since 1970")
    request_id: str | None = Field(None, description="the X-Request-ID of the score it came of")


class EventsBody(BaseModel):
    """Several events, of any users."""

    events: list[EventBody] = Field(min_length=1, max_length=MAX_EVENTS)


class ResultBody(BaseModel):
    """What became of an event. A duplicate was counted before, and is not counted again."""

    status: Literal["accepted", "duplicate", "refused"]
    field: str | None = Field(None, description="only with refused: what was wrong")
    reason: str | None = None


class EventsAnswer(BaseModel):
    """Counts, and what became of each event, in their order."""

    accepted: int
    duplicate: int
    refused: int
    results: list[ResultBody]


class ErasureAnswer(BaseModel):
    """What is gone: the user's keys, and entries of the log that were not collected yet."""

    keys: int
    entries: int


def event_routes(
    settings: Settings, *, registry: Registry, events: EventLog, telemetry: Telemetry
) -> APIRouter:
    """Where callers report what happened, and have a user forgotten."""
    router = APIRouter()

    def encoder() -> Encoder:
        version = registry.current
        if version is None:
            raise NotReady(f"No model is served: {registry.trouble}")
        return version.encoder

    @router.post(
        "/events",
        response_class=Response,
        summary="Behaviours and outcomes: one, or up to 1,000 at once",
        openapi_extra=document(EventBody | EventsBody, EventsAnswer),
    )
    async def post_events(request: Request) -> Response:
        request_id(request.scope)  # for what is logged on the way
        learnt = encoder()
        raws, alone = _events(await json_body(request, settings))
        with staged(request.scope, "redis"):
            found = await events.append(raws, learnt)
        counts = dict.fromkeys(("accepted", "duplicate", "refused"), 0)
        for each in found:
            counts[each.status] += 1
        for status, count in counts.items():
            telemetry.events.labels(status).inc(count)
        if alone and found[0].status == "refused":
            raise Invalid(f"Refused: {found[0].reason}", found[0].field)
        results = {"results": [_said(each) for each in found]}
        return json_response(orjson.dumps({**counts, **results}), request)

    @router.delete(
        "/users/{user_id:path}",
        response_class=Response,
        summary="Forget a user: history, profile and what is not collected yet",
        openapi_extra={"parameters": [_USER_ID], **document(None, ErasureAnswer)},
    )
    async def delete_user(request: Request) -> Response:
        request_id(request.scope)
        user = user_text(request.path_params["user_id"])
        version = registry.current
        gone = await events.erase(user, version.encoder.codec if version else None)
        telemetry.erased.inc()
        return json_response(orjson.dumps(vars(gone)), request)

    return router


def _events(body: Any) -> tuple[list[Any], bool]:
    """The raw events of a body, and whether it is just one. Raises `Invalid`."""
    if not isinstance(body, dict):
        raise Invalid("A JSON object was expected", "body")
    if "events" not in body:
        return [body], True
    several = body["events"]
    if len(body) > 1:
        raise Invalid("Unknown field beside events", "body")
    if not isinstance(several, list) or not 1 <= len(several) <= MAX_EVENTS:
        raise Invalid(f"Expected a list of 1 to {MAX_EVENTS} events", "events")
    return several, False


def _said(result: Result) -> dict[str, str]:
    return {name: value for name, value in vars(result).items() if value is not None}

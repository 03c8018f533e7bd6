"""The wire: what a `POST /score` body may hold, read strictly, and what its answer looks like.

The envelope is a pydantic model. What is inside candidates, history, user and context depends on
the schema of the version in service and is checked against it in `ask`; the values themselves are
checked where they are encoded (`model.contract.encode`). Errors name the field, never a value.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema

from model.contract.encode import FieldError, id_text
from model.contract.schema import Group, Schema
from service.errors import Invalid, Malformed

MAX_CANDIDATES = 2000
MAX_BEHAVIOURS = 10_000
MAX_EXPLAIN = 20
MAX_TIMEOUT_MS = 60_000

Given = Mapping[str, Any]
_KNOWN, _UNKNOWN = "known", "unknown_item"
_BODY = "body"
_NO_JSON = "The body is not JSON (RFC 8259, UTF-8)"
_DIGITS = bytes.maketrans(b"123456789", b"000000000")
_LONG_NUMBER = b"0" * 19
_SAYABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")

_ID = {"anyOf": [{"type": "string", "minLength": 1, "maxLength": 256}, {"type": "integer"}]}
_USER_SCHEMA = {**_ID, "description": "the user; 42 and '42' are the same"}
_CANDIDATE_SCHEMA = {
    "description": "an item id, or an object with it and any item and ad fields of the schema",
    "anyOf": [
        *_ID["anyOf"],
        {"type": "object", "properties": {"item_id": _ID}, "required": ["item_id"]},
    ],
}
_BEHAVIOUR_SCHEMA = {
    "type": "object",
    "description": "a behaviour: its item, its time and the schema's behaviour fields",
    "properties": {"item_id": _ID, "ts": {"type": "integer"}},
    "required": ["item_id", "ts"],
}


class ScoreRequest(BaseModel):
    """One user and the candidates to score."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "example": {
                "user_id": "42",
                "candidates": [{"item_id": "1193"}, {"item_id": 661}, "2355"],
                "explain": 3,
                "timeout_ms": 50,
            }
        },
    )

    user_id: Annotated[Any, WithJsonSchema(_USER_SCHEMA)]
    candidates: list[Annotated[Any, WithJsonSchema(_CANDIDATE_SCHEMA)]] = Field(
        min_length=1, max_length=MAX_CANDIDATES
    )
    context: dict[str, Any] = Field({}, description="the schema's context fields")
    user: dict[str, Any] = Field({}, description="user fields, in place of the stored profile's")
    history: list[Annotated[Any, WithJsonSchema(_BEHAVIOUR_SCHEMA)]] | None = Field(
        None, max_length=MAX_BEHAVIOURS, description="in place of the stored history"
    )
    explain: int = Field(0, ge=0, le=MAX_EXPLAIN, description="behaviours to name per candidate")
    timeout_ms: int | None = Field(None, ge=1, le=MAX_TIMEOUT_MS)


class Because(BaseModel):
    """A behaviour and its attention weight; the item is null where its id is not known."""

    item_id: str | int | None
    weight: float


class Score(BaseModel):
    """One candidate: one probability per task of the model; `ctr` unless it names others."""

    model_config = ConfigDict(extra="allow")

    item_id: str | int
    ctr: float = Field(ge=0, le=1)
    status: str = Field(pattern="known|unknown_item")
    because: list[Because] = Field([], description="only with explain above 0")


class Timing(BaseModel):
    """Milliseconds."""

    store: float
    queue: float
    model: float
    total: float


class ScoreResponse(BaseModel):
    """Scores in the order of the candidates."""

    request_id: str
    model: str
    version: int
    history_length: int = Field(description="behaviours that were looked at")
    degraded: str | None = Field(
        description="null, history_unavailable or profile_unavailable (the store did not answer)"
    )
    scores: list[Score]
    timing_ms: Timing


class ProblemDocument(BaseModel):
    """RFC 9457, with the field at fault and the request's id."""

    type: str
    title: str
    status: int
    detail: str
    field: str | None
    request_id: str


@dataclass(frozen=True)
class Ask:
    """A request of the right form; its ids and values are checked when they are encoded."""

    user: str
    candidates: Sequence[Any]
    given: Sequence[Given]
    overrides: Given
    context: Given
    history: Sequence[Given] | None
    explain: int
    timeout_ms: int | None


def parse(body: bytes) -> ScoreRequest:
    """The envelope of a body. Raises `Malformed` and `Invalid`."""
    # orjson makes floats of integers over 64 bits; they must not pass as numbers.
    suspect = _LONG_NUMBER in body.translate(_DIGITS)
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        _find_refused(body)
        raise Malformed(_NO_JSON, _BODY) from None
    if suspect:
        _find_refused(body)
    return _envelope(value)


class _Refused:
    """A JSON number that no field takes."""

    def __init__(self, expected: str) -> None:
        self.expected = expected


def _find_refused(body: bytes) -> None:
    """Raise `Invalid` for the first NaN, overflow, long integer or lone surrogate of a body.

    Python's own parser reads what orjson refuses as a whole, so that the field can be named.
    """
    try:
        value = json.loads(
            body,
            parse_constant=lambda text: _Refused("a finite number"),
            parse_float=lambda text: (
                number if math.isfinite(number := float(text)) else _Refused("a finite number")
            ),
            parse_int=lambda text: (
                number
                if len(text) <= 20 and -(2**63) <= (number := int(text)) < 2**64
                else _Refused("an integer of at most 64 bits")
            ),
        )
        _walk(value, ())
    except (ValueError, RecursionError):
        raise Malformed(_NO_JSON, _BODY) from None


def _walk(value: Any, path: tuple[str | int, ...]) -> None:
    if isinstance(value, _Refused):
        raise Invalid(f"Expected {value.expected}", _path(path))
    if isinstance(value, str) and not value.isascii() and _has_surrogate(value):
        raise Invalid("Expected valid Unicode text", _path(path))
    if isinstance(value, dict):
        for key, inner in value.items():
            if _has_surrogate(key):
                raise Invalid("Expected field names of valid Unicode text", _path(path))
            _walk(inner, (*path, key))
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            _walk(inner, (*path, at))


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _envelope(value: Any) -> ScoreRequest:
    if not isinstance(value, dict):
        raise Invalid("A JSON object was expected", _BODY)
    try:
        return ScoreRequest.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        detail = "Unknown field" if first["type"] == "extra_forbidden" else first["msg"]
        raise Invalid(detail, _path(first["loc"])) from None


def ask(request: ScoreRequest, schema: Schema) -> Ask:
    """Check a request's fields against the schema. Raises `Invalid`."""
    try:
        user = id_text(request.user_id, "user_id")
    except FieldError as error:
        raise Invalid(f"Expected {error.expected}", error.field) from None
    given = _objects(request.candidates, _names(schema, "item", "ad"), "candidates")
    _known(request.user, _names(schema, "user"), "user")
    _known(request.context, _names(schema, "context"), "context")
    history = request.history
    if history is not None and not all(isinstance(each, dict) for each in history):
        at = next(at for at, each in enumerate(history) if not isinstance(each, dict))
        raise Invalid("Expected an object with item_id and ts", f"history[{at}]")
    _objects(history or (), _names(schema, "behaviour") | {"item_id", "ts"}, "history")
    return Ask(
        user=user,
        candidates=[
            each.get("item_id") if isinstance(each, dict) else each for each in request.candidates
        ],
        given=given,
        overrides=request.user,
        context=request.context,
        history=history,
        explain=request.explain,
        timeout_ms=request.timeout_ms,
    )


def _names(schema: Schema, *groups: Group) -> frozenset[str]:
    return frozenset(field.name for group in groups for field in schema.group(group))


def _objects(values: Sequence[Any], names: frozenset[str], where: str) -> Sequence[Given]:
    """Fields of each value, {} where it is a bare id; () when none has more than an item_id."""
    objects = [value for value in values if isinstance(value, dict)]
    found = set().union(*objects)
    if not found <= names:
        for at, value in enumerate(values):
            if isinstance(value, dict):
                _known(value, names, f"{where}[{at}]")
    if found <= {"item_id"}:
        return ()
    return [value if isinstance(value, dict) else {} for value in values]


def respond(
    asked: Ask,
    *,
    request_id: str,
    model: str,
    version: int,
    history_length: int,
    degraded: str | None,
    probabilities: Mapping[str, Sequence[float]],
    known: Sequence[bool],
    because: Sequence[Sequence[Given]] | None,
    timing_ms: Mapping[str, float],
) -> bytes:
    """The body of a `ScoreResponse`. ``probabilities`` has one list per name in the answer."""
    first, *others = probabilities.items()
    scores: list[dict[str, Any]] = [
        {"item_id": item, first[0]: value, "status": _KNOWN if is_known else _UNKNOWN}
        for item, value, is_known in zip(asked.candidates, first[1], known, strict=True)
    ]
    for name, values in others:
        for score, value in zip(scores, values, strict=True):
            score.setdefault(name, value)
    if because is not None:
        for score, reasons in zip(scores, because, strict=True):
            score["because"] = reasons
    return orjson.dumps(
        {
            "request_id": request_id,
            "model": model,
            "version": version,
            "history_length": history_length,
            "degraded": degraded,
            "scores": scores,
            "timing_ms": timing_ms,
        }
    )


def _known(fields: Mapping[str, Any], names: frozenset[str], where: str) -> None:
    if not fields.keys() <= names:
        unknown = next(name for name in fields if name not in names)
        raise Invalid("Unknown field", _path((unknown,), where))


def _path(parts: Sequence[str | int], path: str = "") -> str:
    """`candidates[3].genre`; stops before a name that a sender made up to be echoed."""
    for part in parts:
        if isinstance(part, int):
            path += f"[{part}]"
        elif _SAYABLE.fullmatch(part):
            path += f".{part}" if path else part
        else:
            break
    return path or _BODY

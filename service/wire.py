"""The wire: what all forms of a score request share; each form is a file of its own.

=================== ========================================================================
`service.rows`      ``POST /score``: an object per candidate, friendly, with explanations
`service.columns`   ``POST /score/columns``: a list per field
`service.binary`    ``POST /score/columns``: 64-bit keys in, 32-bit floats out, no JSON
=================== ========================================================================

The envelope of a JSON form is a pydantic model. What is inside it depends on the schema of the
version in service and is checked against it by the form; the values themselves are checked where
they are encoded (`model.contract.encode`). Errors name the field, never a value.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema

from model.contract.encode import FieldError, Given, id_text
from model.contract.ids import Keys
from model.contract.schema import Group, Schema
from service.errors import Invalid, Malformed

MAX_CANDIDATES = 2000
MAX_BEHAVIOURS = 10_000
MAX_TIMEOUT_MS = 60_000

_BODY = "body"
_NO_JSON = "The body is not JSON (RFC 8259, UTF-8)"
_DIGITS = bytes.maketrans(b"123456789", b"000000000")
_LONG_NUMBER = b"0" * 19
_SAYABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")

ID_SCHEMA = {"anyOf": [{"type": "string", "minLength": 1, "maxLength": 256}, {"type": "integer"}]}
_USER_SCHEMA = {**ID_SCHEMA, "description": "the user; 42 and '42' are the same"}
_BEHAVIOUR_SCHEMA = {
    "type": "object",
    "description": "a behaviour: its item, its time and the schema's behaviour fields",
    "properties": {"item_id": ID_SCHEMA, "ts": {"type": "integer"}},
    "required": ["item_id", "ts"],
}


class Envelope(BaseModel):
    """What every JSON request may hold beside its candidates."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    user_id: Annotated[Any, WithJsonSchema(_USER_SCHEMA)]
    context: dict[str, Any] = Field({}, description="the schema's context fields")
    user: dict[str, Any] = Field({}, description="user fields, in place of the stored profile's")
    history: list[Annotated[Any, WithJsonSchema(_BEHAVIOUR_SCHEMA)]] | None = Field(
        None, max_length=MAX_BEHAVIOURS, description="in place of the stored history"
    )
    timeout_ms: int | None = Field(None, ge=1, le=MAX_TIMEOUT_MS)


class Timing(BaseModel):
    """Milliseconds."""

    store: float
    queue: float
    model: float
    total: float


class AnswerEnvelope(BaseModel):
    """What every JSON answer says beside its scores."""

    request_id: str
    model: str
    version: int
    history_length: int = Field(description="behaviours that were looked at")
    degraded: str | None = Field(
        description="null, history_unavailable or profile_unavailable (the store did not answer)"
    )
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
    """A request of the right form; its ids and values are checked when they are encoded.

    Candidates are raw ids, or uint64 keys. What else came with them is by candidate in ``given``
    or by field in ``columns``.
    """

    user: str
    candidates: Sequence[Any] | Keys
    given: Sequence[Given] = ()
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    overrides: Given = field(default_factory=dict)
    context: Given = field(default_factory=dict)
    history: Sequence[Given] | None = None
    explain: int = 0
    timeout_ms: int | None = None


class Because(NamedTuple):
    """Why each candidate got its score: positions [C, top] of behaviours in the history that was
    looked at, their attention weights [C, top], and the raw item ids by position, None where only
    an unknown key is stored."""

    behaviour: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float32]
    names: Mapping[int, str | int | None]


class Answer(NamedTuple):
    """What a form writes down."""

    request_id: str
    model: str
    version: int
    history_length: int
    degraded: str | None
    tasks: Sequence[str]
    probability: npt.NDArray[np.float64]  # [C, tasks]
    unknown: npt.NDArray[np.int64]  # positions [K] of candidates that the model does not know
    because: Because | None
    timing_ms: Mapping[str, float]

    def envelope(self) -> dict[str, Any]:
        """The fields of `AnswerEnvelope`, without the last."""
        return {
            "request_id": self.request_id,
            "model": self.model,
            "version": self.version,
            "history_length": self.history_length,
            "degraded": self.degraded,
        }


@dataclass(frozen=True)
class Form:
    """One way to say a request and its answer. ``read`` raises `Malformed` and `Invalid`.

    ``named`` says in the form's own words which field an encoder's error is about.
    """

    media_type: str
    read: Callable[[bytes, Schema], Ask]
    write: Callable[[Ask, Answer], bytes]
    named: Callable[[str], str] = str


Body = TypeVar("Body", bound=Envelope)


def parse(body: bytes, form: type[Body]) -> Body:
    """The envelope of a body. Raises `Malformed` and `Invalid`."""
    return _envelope(read_json(body), form)


def read_json(body: bytes) -> Any:
    """The value of a JSON body, without NaN, overflow, integers over 64 bits and lone surrogates.

    Raises `Malformed` and `Invalid`.
    """
    try:
        return _plain(body)
    except ValueError:
        value = _in_full(body)
    try:
        _walk(value, ())
    except RecursionError:
        raise Malformed(_NO_JSON, _BODY) from None
    return value


def read_parts(body: bytes) -> Any:
    """The same of a body whose parts are refused each by itself, not all for one: lone surrogates
    and in place of other numbers objects that no check lets pass stand in the value.

    Raises `Malformed`.
    """
    try:
        return _plain(body)
    except ValueError:
        return _in_full(body)


class _Refused:
    """A JSON number that no field takes."""

    def __init__(self, expected: str) -> None:
        self.expected = expected


def _plain(body: bytes) -> Any:
    """The value of a body in which nothing is to be refused. Raises ValueError."""
    # orjson makes floats of integers over 64 bits; they must not pass as numbers.
    if _LONG_NUMBER in body.translate(_DIGITS):
        raise ValueError("a long number")
    return orjson.loads(body)


def _in_full(body: bytes) -> Any:
    """The value of a body that orjson may refuse as a whole, with `_Refused` numbers in it, so that
    the field can be named: Python's own parser reads it. Raises `Malformed`."""
    try:
        return json.loads(
            body.decode(errors="surrogatepass"),  # bytes might be taken for UTF-16 or -32
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


def _envelope(value: Any, form: type[Body]) -> Body:
    if not isinstance(value, dict):
        raise Invalid("A JSON object was expected", _BODY)
    try:
        return form.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        detail = "Unknown field" if first["type"] == "extra_forbidden" else first["msg"]
        raise Invalid(detail, _path(first["loc"])) from None


def envelope(request: Envelope, schema: Schema) -> dict[str, Any]:
    """The arguments of `Ask` that all JSON forms share, checked. Raises `Invalid`."""
    known_fields(request.user, names(schema, "user"), "user")
    known_fields(request.context, names(schema, "context"), "context")
    history = request.history
    if history is not None and not all(isinstance(each, dict) for each in history):
        at = next(at for at, each in enumerate(history) if not isinstance(each, dict))
        raise Invalid("Expected an object with item_id and ts", f"history[{at}]")
    if history:
        known_in_all(history, names(schema, "behaviour") | {"item_id", "ts"}, "history")
    return {
        "user": user_text(request.user_id),
        "overrides": request.user,
        "context": request.context,
        "history": history,
        "timeout_ms": request.timeout_ms,
    }


def user_text(value: Any) -> str:
    """The user's id as text. Raises `Invalid`."""
    try:
        return id_text(value, "user_id")
    except FieldError as error:
        raise Invalid(f"Expected {error.expected}", error.field) from None


def names(schema: Schema, *groups: Group) -> frozenset[str]:
    """The names of the schema's fields in some groups."""
    return frozenset().union(*(schema.names[group] for group in groups))


def known_in_all(values: Sequence[Any], known: frozenset[str], where: str) -> frozenset[str]:
    """Every field that some object among the values has. Raises `Invalid` for one not known."""
    found = frozenset().union(*(value for value in values if isinstance(value, dict)))
    if not found <= known:
        for at, value in enumerate(values):
            if isinstance(value, dict):
                known_fields(value, known, f"{where}[{at}]")
    return found


def known_fields(fields: Mapping[str, Any], known: frozenset[str], where: str) -> None:
    """Raises `Invalid` for a field that is not known."""
    if not fields.keys() <= known:
        unknown = next(name for name in fields if name not in known)
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

"""The row form: an object per candidate, in and out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from operator import itemgetter
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import orjson
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from model.contract.ids import Keys
from model.contract.schema import Schema
from service.wire import (
    ID_SCHEMA,
    MAX_CANDIDATES,
    Answer,
    AnswerEnvelope,
    Ask,
    Because,
    Envelope,
    Form,
    envelope,
    known_in_all,
    names,
    parse,
)

MAX_EXPLAIN = 20
Column = bytes | Iterable[bytes]
"""What is the same in all rows, or the text of each."""

_KNOWN, _UNKNOWN = b',"status":"known"', b',"status":"unknown_item"'
_OWN = frozenset({"item_id", "ctr", "status"})
_ITEM_ID = itemgetter("item_id")

_CANDIDATE_SCHEMA = {
    "description": "an item id, or an object with it and any item and ad fields of the schema",
    "anyOf": [
        *ID_SCHEMA["anyOf"],
        {"type": "object", "properties": {"item_id": ID_SCHEMA}, "required": ["item_id"]},
    ],
}


class ScoreRequest(Envelope):
    """One user and the candidates to score."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "user_id": "42",
                "candidates": [{"item_id": "1193"}, {"item_id": 661}, "2355"],
                "explain": 3,
                "timeout_ms": 50,
            }
        },
    )

    candidates: list[Annotated[Any, WithJsonSchema(_CANDIDATE_SCHEMA)]] = Field(
        min_length=1, max_length=MAX_CANDIDATES
    )
    explain: int = Field(0, ge=0, le=MAX_EXPLAIN, description="behaviours to name per candidate")


class Reason(BaseModel):
    """A behaviour and its attention weight; the item is null where its id is not known."""

    item_id: str | int | None
    weight: float


class Score(BaseModel):
    """One candidate: one probability per task of the model; `ctr` unless it names others."""

    model_config = ConfigDict(extra="allow")

    item_id: str | int
    ctr: float = Field(ge=0, le=1)
    status: str = Field(pattern="known|unknown_item")
    because: list[Reason] = Field([], description="only with explain above 0")


class ScoreResponse(AnswerEnvelope):
    """Scores in the order of the candidates."""

    scores: list[Score]


def read(body: bytes, schema: Schema) -> Ask:
    """A request in rows. Raises `Malformed` and `Invalid`."""
    request = parse(body, ScoreRequest)
    shared = envelope(request, schema)
    candidates = request.candidates
    with suppress(TypeError, KeyError):  # most often each is an object of nothing but an id
        ids = list(map(_ITEM_ID, candidates))
        if max(map(len, candidates)) == 1:
            return Ask(**shared, candidates=ids, explain=request.explain)
    found = known_in_all(candidates, names(schema, "item", "ad"), "candidates")
    return Ask(
        **shared,
        candidates=[each.get("item_id") if isinstance(each, dict) else each for each in candidates]
        if found
        else candidates,
        given=()
        if found <= {"item_id"}
        else [each if isinstance(each, dict) else {} for each in candidates],
        explain=request.explain,
    )


def write(asked: Ask, answer: Answer) -> bytes:
    """The body of a `ScoreResponse`: `ctr` is the first task, several go by their names too.

    The scores are put together as text: objects would cost more, with reasons twice as much.
    """
    first, *several = (_numbers(of_task) for of_task in answer.probability.T)
    status: Column = _KNOWN
    if len(answer.unknown):
        status = [_KNOWN] * len(asked.candidates)
        for at in answer.unknown.tolist():
            status[at] = _UNKNOWN
    row: list[Column] = [*_begun(asked.candidates), b',"ctr":', first, status]
    for name, column in zip(answer.tasks, (first, *several), strict=True) if several else ():
        if name not in _OWN:
            row += [b"," + orjson.dumps(name) + b":", column]
    if answer.because is not None:
        row += _reasons(answer.because)
    scores = b"[" + _in_rows([*row, b"},"], len(asked.candidates))[:-1] + b"]"
    return orjson.dumps(
        {
            **answer.envelope(),
            "scores": orjson.Fragment(scores),
            "timing_ms": answer.timing_ms,
        }
    )


def _begun(ids: Sequence[Any] | Keys) -> list[Column]:
    """The parts that begin each candidate."""
    text = orjson.dumps(ids)
    found = text.split(b'"')[1::2]
    if len(found) == len(ids) and b"\\" not in text:  # all are text, and nothing is escaped
        return [b'{"item_id":"', found, b'"']
    return [b'{"item_id":', map(orjson.dumps, ids)]


def _reasons(because: Because) -> list[Column]:
    """The parts of each candidate's list of reasons."""
    named = {at: orjson.dumps(name) for at, name in because.names.items()}
    parts: list[Column] = []
    for places, weights in zip(because.behaviour.T, because.weight.T, strict=True):
        parts += [
            b'},{"item_id":' if parts else b',"because":[{"item_id":',
            map(named.__getitem__, places.tolist()),
            b',"weight":',
            _numbers(weights),
        ]
    return [*parts, b"}]"] if parts else [b',"because":[]']


def _numbers(values: npt.NDArray[np.floating]) -> list[bytes]:
    """Each of [n >= 1] numbers as JSON."""
    text = orjson.dumps(np.ascontiguousarray(values), option=orjson.OPT_SERIALIZE_NUMPY)
    return text[1:-1].split(b",")


def _in_rows(parts: Sequence[Column], count: int) -> bytes:
    """Row by row, what all rows have and what is each row's own."""
    row, own = [b""], []
    for part in parts:
        if isinstance(part, bytes):
            row[-1] += part
        else:
            own.append((len(row), part))
            row += [b"", b""]
    cells = row * count
    for at, column in own:
        cells[at :: len(row)] = column
    return b"".join(cells)


ROWS = Form("application/json", read, write)

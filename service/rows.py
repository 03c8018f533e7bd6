"""The row form: an object per candidate, in and out."""

from __future__ import annotations

from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

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
_KNOWN, _UNKNOWN = "known", "unknown_item"

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
    """The body of a `ScoreResponse`: `ctr` is the first task, several go by their names too."""
    columns = answer.probability.T.tolist()
    scores: list[dict[str, Any]] = [
        {"item_id": item, "ctr": value, "status": _KNOWN if is_known else _UNKNOWN}
        for item, value, is_known in zip(
            asked.candidates, columns[0], answer.known.tolist(), strict=True
        )
    ]
    for name, values in zip(answer.tasks, columns, strict=True) if len(columns) > 1 else ():
        for score, value in zip(scores, values, strict=True):
            score.setdefault(name, value)
    if answer.because is not None:
        for score, reasons in zip(scores, _reasons(answer.because), strict=True):
            score["because"] = reasons
    return orjson.dumps({**answer.envelope(), "scores": scores, "timing_ms": answer.timing_ms})


def _reasons(because: Because) -> list[orjson.Fragment]:
    """The list of each candidate as JSON, all written at once: objects would cost twice as much."""
    count, top = because.weight.shape
    if not top:
        return [orjson.Fragment(b"[]")] * count
    weights = orjson.dumps(because.weight.ravel(), option=orjson.OPT_SERIALIZE_NUMPY).decode()
    names = {at: orjson.dumps(name).decode() for at, name in because.names.items()}
    values: list[str] = [""] * (2 * count * top)
    values[::2] = map(names.__getitem__, because.behaviour.ravel().tolist())
    values[1::2] = weights[1:-1].split(",")
    one = "[" + ",".join(['{"item_id":%s,"weight":%s}'] * top) + "]"
    lines = "\n".join([one] * count) % tuple(values)  # JSON text holds no line's end
    return [orjson.Fragment(line) for line in lines.split("\n")]


ROWS = Form("application/json", read, write)

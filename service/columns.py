"""The column form: one list of item ids, one list per field, one list of probabilities back."""

from __future__ import annotations

import re
from typing import Annotated, Any

import numpy as np
import orjson
from pydantic import ConfigDict, Field, WithJsonSchema

from model.contract.schema import Schema
from service.errors import Invalid
from service.wire import (
    ID_SCHEMA,
    MAX_CANDIDATES,
    Answer,
    AnswerEnvelope,
    Ask,
    Envelope,
    Form,
    envelope,
    known_fields,
    names,
    parse,
)


class ColumnsRequest(Envelope):
    """One user and the candidates to score, in columns."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"user_id": "42", "item_ids": ["1193", "661", "2355"], "timeout_ms": 50}
        },
    )

    item_ids: list[Annotated[Any, WithJsonSchema(ID_SCHEMA)]] = Field(
        min_length=1, max_length=MAX_CANDIDATES
    )
    fields: dict[str, list[Any]] = Field(
        {},
        description="item and ad fields of the schema, one value per candidate; null leaves the"
        " catalogue's",
    )


class ColumnsResponse(AnswerEnvelope):
    """Probabilities in the order of the candidates; one more list per task if there are several."""

    model_config = ConfigDict(extra="allow")

    ctr: list[float]
    unknown: list[int] = Field(description="positions of the items that the model does not know")


def read(body: bytes, schema: Schema) -> Ask:
    """A request in columns. Raises `Malformed` and `Invalid`."""
    request = parse(body, ColumnsRequest)
    shared = envelope(request, schema)
    known_fields(request.fields, names(schema, "item", "ad") - {"item_id"}, "fields")
    for name, values in request.fields.items():
        if len(values) != len(request.item_ids):
            raise Invalid(f"Expected {len(request.item_ids)} values", f"fields.{name}")
    return Ask(**shared, candidates=request.item_ids, columns=request.fields)


def write(asked: Ask, answer: Answer) -> bytes:
    """The body of a `ColumnsResponse`."""
    by_task = np.ascontiguousarray(answer.probability.T, np.float32)
    several = dict(zip(answer.tasks, by_task, strict=True)) if len(by_task) > 1 else {}
    return orjson.dumps(
        {
            **several,
            **answer.envelope(),
            "ctr": by_task[0],
            "unknown": answer.unknown,
            "timing_ms": answer.timing_ms,
        },
        option=orjson.OPT_SERIALIZE_NUMPY,
    )


def named(field: str) -> str:
    """``candidates[3].price`` is ``fields.price[3]`` here, and its item_id ``item_ids[3]``."""
    found = re.fullmatch(r"candidates(\[\d+\])\.(\w+)", field)
    if found is None:
        return field
    at, name = found.groups()
    return f"item_ids{at}" if name == "item_id" else f"fields.{name}{at}"


COLUMNS = Form("application/json", read, write, named)

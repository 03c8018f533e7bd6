"""The log: what happened, entry by entry, as it stands in the Redis streams and is collected later.

An entry of a stream has the fields ``k`` (its kind), ``u`` (the user's id, so that an erasure finds
it) and ``d``, a JSON object:

======= ========== =================================================================================
k       class      what
======= ========== =================================================================================
event   `Event`    something the caller reported: an impression, a click, ...
score   `Scored`   an answered score request, with all that its features were made from
erase   `Erased`   a user was erased: nothing of that user from before may be kept
======= ========== =================================================================================

Each has a ``key``, 64 bits that name it wherever it is met again: a retried event has the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from xxhash import xxh3_64_hexdigest

from model.contract.batch import Batch
from model.contract.encode import FieldError, id_text, number, timestamp
from model.contract.history import Records
from model.contract.ids import key
from model.contract.schema import MAX_ACTION, Schema, is_action, is_name

MAX_FIELDS = 32
MAX_TAGS = 256
_FIXED = frozenset({"user_id", "item_id", "action", "ts", "request_id"})


@dataclass(frozen=True)
class Event:
    """What a user did with an item, or was shown. ``received`` in ms since 1970."""

    kind: ClassVar[str] = "event"

    user_id: str
    item_id: str
    action: str
    ts: int
    received: int
    request_id: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> int:
        """The same for the same user, item, action and ts."""
        parts = (self.user_id, self.item_id, self.action, str(self.ts))
        return key("".join(f"{len(part)}:{part}" for part in parts))

    def raw(self, schema: Schema) -> dict[str, Any]:
        """The behaviour it is, in raw values, as `Encoder.records` takes it. A behaviour field
        named action holds the event's, unless the event says otherwise."""
        own = {**({"action": self.action} if _has_action(schema) else {}), **self.fields}
        extra = {each.name: own[each.name] for each in schema.behaviour if each.name in own}
        return {"item_id": self.item_id, "ts": self.ts, **extra}


@dataclass(frozen=True)
class Snapshot:
    """The history that a score was made from: how many behaviours were looked at, the newest ts
    (None without any) and a digest of their records, 16 hex digits; ``raw`` if the caller gave it.
    """

    length: int
    newest: int | None
    digest: str
    raw: Sequence[Mapping[str, Any]] | None = None

    @classmethod
    def of(cls, records: Records, raw: Sequence[Mapping[str, Any]] | None = None) -> Snapshot:
        """Of the records that were looked at."""
        newest = int(records["ts"][-1]) if len(records) else None
        return cls(len(records), newest, xxh3_64_hexdigest(records.tobytes()), raw)


@dataclass(frozen=True)
class Scored:
    """An answered request. Position i in it is the i-th candidate; ``received`` in ms since 1970,
    from before the store was read for it.

    ``candidates`` holds raw ids, None where only an unknown key was given; ``unknown`` has the
    positions of those that the catalogue lacks. ``columns`` holds the item and ad fields that came
    with the candidates, None where one did not. ``user`` and ``context`` are the raw fields that
    were used. ``rows`` has a digest of each field's encoded rows (`digests`).
    """

    kind: ClassVar[str] = "score"

    request_id: str
    user_id: str
    received: int
    model: str
    version: int
    schema: str
    candidates: Sequence[str | None]
    probability: Mapping[str, Sequence[float]]
    history: Snapshot
    user: Mapping[str, Any]
    context: Mapping[str, Any]
    columns: Mapping[str, Sequence[Any]]
    rows: Mapping[str, str]
    unknown: Sequence[int] = ()
    degraded: str | None = None

    @property
    def key(self) -> int:
        """The same for the same answer, however often it is logged: a request id may be sent again,
        and then there are several."""
        about = (self.user_id, self.request_id, self.received, self.version, *self.candidates)
        return key(json.dumps(about))


@dataclass(frozen=True)
class Erased:
    """A user was erased, ``received`` ms since 1970."""

    kind: ClassVar[str] = "erase"

    user_id: str
    received: int

    @property
    def key(self) -> int:
        return key(f"{self.user_id}:{self.received}")


Entry = Event | Scored | Erased


def dump(entry: Entry) -> dict[str, Any]:
    """The JSON object of an entry's ``d``."""
    found = {name: value for name, value in vars(entry).items() if value is not None}
    if isinstance(entry, Scored):
        found["history"] = {
            name: value for name, value in vars(entry.history).items() if value is not None
        }
    return found


def load(kind: str, data: str | bytes) -> Entry:
    """The entry of a stream. Raises ValueError for what none is."""
    try:
        found = json.loads(data)
        if kind == Event.kind:
            return Event(**found)
        if kind == Scored.kind:
            return Scored(**{**found, "history": Snapshot(**{"newest": None, **found["history"]})})
        if kind == Erased.kind:
            return Erased(**found)
    except (TypeError, KeyError) as error:
        raise ValueError(f"no {kind} entry: {error}") from None
    raise ValueError("an entry of no known kind")


def digests(batch: Batch, schema: Schema) -> dict[str, str]:
    """A digest of the encoded rows of every field of a batch of one user, by ``group.field``."""
    found = {}
    for group in ("user", "item", "ad", "context"):
        rows = getattr(batch, group)
        for name, columns in schema.columns(group).items():
            found[f"{group}.{name}"] = _digest(rows[:, columns])
    behind = schema.width("item")
    for name, columns in schema.columns("item").items():
        found[f"history.{name}"] = _digest(batch.history[0, :, columns])
    for name, columns in schema.columns("behaviour").items():
        at = slice(columns.start + behind, columns.stop + behind)
        found[f"history.{name}"] = _digest(batch.history[0, :, at])
    return found


def _digest(rows: np.ndarray[Any, Any]) -> str:
    return xxh3_64_hexdigest(np.ascontiguousarray(rows, "<i8").tobytes())


def read_event(raw: Any, kinds: Mapping[str, str], received: int) -> Event:
    """An event as a caller sent it, checked. Raises `FieldError`.

    Fields beside the fixed ones may be any; those of a known kind (`kinds_of`) must fit it.
    """
    if not isinstance(raw, Mapping):
        raise FieldError("event", "an object")
    action = raw.get("action")
    if not is_action(action):
        raise FieldError("action", f"an identifier of at most {MAX_ACTION} characters")
    request_id = raw.get("request_id")
    fields = {name: value for name, value in raw.items() if name not in _FIXED}
    if len(fields) > MAX_FIELDS:
        raise FieldError("event", f"at most {MAX_FIELDS} extra fields")
    for name, value in fields.items():
        if not name.isidentifier() or not is_name(name):
            raise FieldError("event", "names of fields that are identifiers")
        try:
            _check(name, value, kinds.get(name))
        except FieldError as error:  # a name of the caller's own is not echoed
            raise FieldError(name if name in kinds else "event", error.expected) from None
    return Event(
        user_id=id_text(raw.get("user_id"), "user_id"),
        item_id=id_text(raw.get("item_id"), "item_id"),
        action=str(action),
        ts=timestamp(raw.get("ts"), "ts"),
        received=received,
        request_id=None if request_id is None else id_text(request_id, "request_id"),
        fields=fields,
    )


def kinds_of(schema: Schema) -> dict[str, str]:
    """The kinds of a schema's fields by their names."""
    return {each.name: each.kind for each in schema.fields}


def _check(name: str, value: Any, kind: str | None) -> None:
    """Hold a field's value to its kind; one that no schema knows is an id, a number or tags."""
    if value is None:
        return
    if kind == "tags" or (kind is None and isinstance(value, list)):
        if not isinstance(value, list) or len(value) > MAX_TAGS:
            raise FieldError(name, f"a list of at most {MAX_TAGS} tags")
        for tag in value:
            id_text(tag, name)
    elif kind == "number" or (kind is None and isinstance(value, float)):
        number(value, name)
    else:
        id_text(value, name)


def _has_action(schema: Schema) -> bool:
    return any(each.name == "action" for each in schema.behaviour)

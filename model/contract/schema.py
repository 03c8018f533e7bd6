"""The schema: what the features of a model are, read from one TOML file.

A field belongs to one group:

=========== ======================================================================
user        what is known of the user (a profile); one row per user
item        what an item is; shared by candidates and behaviours, same embedding tables
behaviour   what only a behaviour has (a rating, an action type); stored with the history
ad          what only a candidate has beside its item (a creative, a campaign)
context     what the impression has (hour, page, position); one row per candidate
=========== ======================================================================

and is of one kind:

=========== ======================================================================
category    one id; a vocabulary learnt from the logs (``min_count``) or, for an open
            vocabulary, ``buckets`` hash rows
tags        up to ``max_values`` ids of one vocabulary (the genres of a film)
number      a real number, cut at ``boundaries`` into len(boundaries) + 1 rows
=========== ======================================================================

Beside the fields: ``history_length``; ``ts_unit``, the unit of every ts ("s" or "ms" since 1970
where a clock is asked, else only the order matters); ``session_gap``, in the same unit: a pause
longer than that ends a session (no gap, no sessions); ``history_actions``, the actions of events
that enter a history; and for each task the ``action`` that makes its label 1.

The first item field is always ``item_id``. Every problem raises `SchemaError`, which names the
file, the field and what was expected.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

Kind = Literal["category", "tags", "number"]
Group = Literal["user", "item", "behaviour", "ad", "context"]
TsUnit = Literal["s", "ms"]
GROUPS: tuple[Group, ...] = ("user", "item", "behaviour", "ad", "context")
RESERVED = frozenset({"user_id", "ts", "split", "behaviour", "probability", "request_id"})
RESERVED |= {"seen_length", "seen_newest"}
# A score of an answer holds these beside one probability per task; ctr is that of the first task.
SCORED = frozenset({"item_id", "status", "because"})
MAX_NAME = 100
MAX_ACTION = 32
SHOWN = "impression"
MAX_HISTORY = 10_000
MAX_GAP = 10**12
MAX_TAGS = 256
MAX_BUCKETS = 2**31 - 3


class SchemaError(ValueError):
    """A schema that can't be used: the file, the field and what was expected there."""

    def __init__(self, file: str, field: str, expected: str) -> None:
        super().__init__(f"{file}: {field}: expected {expected}")
        self.file, self.field, self.expected = file, field, expected


@dataclass(frozen=True)
class Field:
    """One feature. ``width`` id columns wide in the arrays of its group."""

    name: str
    kind: Kind
    table: str
    min_count: int = 1
    buckets: int = 0
    max_values: int = 1
    boundaries: tuple[float, ...] = ()

    @property
    def width(self) -> int:
        return self.max_values if self.kind == "tags" else 1


@dataclass(frozen=True)
class Schema:
    """All features of a model, the most recent behaviours it looks at, and its tasks.

    ``actions`` holds one for each task: an impression's label is 1 when it was followed by that.
    """

    name: str
    history_length: int
    ts_unit: TsUnit
    session_gap: int | None
    history_actions: tuple[str, ...]
    tasks: tuple[str, ...]
    actions: tuple[str, ...]
    user: tuple[Field, ...]
    item: tuple[Field, ...]
    behaviour: tuple[Field, ...]
    ad: tuple[Field, ...]
    context: tuple[Field, ...]

    def group(self, group: Group) -> tuple[Field, ...]:
        return cast(tuple[Field, ...], getattr(self, group))

    def width(self, group: Group) -> int:
        """Number of id columns of a group: F_user, F_item, ... of the batch."""
        return sum(field.width for field in self.group(group))

    def columns(self, group: Group) -> dict[str, slice]:
        """Where each field's id columns lie in its group's array."""
        start, found = 0, {}
        for field in self.group(group):
            found[field.name] = slice(start, start + field.width)
            start += field.width
        return found

    @property
    def fields(self) -> tuple[Field, ...]:
        return tuple(field for group in GROUPS for field in self.group(group))

    @property
    def tables(self) -> dict[str, Field]:
        """Each id table with the first field that uses it (all its users agree on its rows)."""
        found: dict[str, Field] = {}
        for field in self.fields:
            found.setdefault(field.table, field)
        return found

    @cached_property
    def names(self) -> dict[Group, frozenset[str]]:
        """The names of each group's fields."""
        return {group: frozenset(each.name for each in self.group(group)) for group in GROUPS}

    @cached_property
    def fingerprint(self) -> str:
        """Digest of everything that decides what the arrays mean; 16 hex digits."""
        body = json.dumps(_plain(self), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(body.encode()).hexdigest()[:16]

    @cached_property
    def layout(self) -> str:
        """Digest of what a stored behaviour record holds; names the layout in Redis keys."""
        return layout_of(self.record)

    @property
    def record(self) -> list[tuple[str, str]]:
        """Names and kinds of what a behaviour record holds beside ts and item; before them ("ts",
        "ms") where its ts is in ms."""
        fields = [(field.name, str(field.kind)) for field in self.behaviour]
        return [("ts", "ms"), *fields] if self.ts_unit == "ms" else fields

    @classmethod
    def load(cls, path: str | Path) -> Schema:
        """Read a schema file. Raises `SchemaError`."""
        file = str(path)
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise SchemaError(file, "file", f"a readable file ({error.strerror})") from None
        except UnicodeDecodeError:
            raise SchemaError(file, "file", "UTF-8 text") from None
        return cls.parse(text, file)

    @classmethod
    def parse(cls, text: str, file: str = "schema") -> Schema:
        """Read schema text; ``file`` is the name used in errors. Raises `SchemaError`."""
        try:
            document = tomllib.loads(text)
        except (ValueError, RecursionError) as error:  # tomllib lets int's digit limit through
            raise SchemaError(file, "file", f"valid TOML ({error})") from None
        return _Reader(file).schema(document)


def layout_of(fields: Sequence[tuple[str, str]]) -> str:
    """Digest of `Schema.record`; 8 hex digits."""
    body = json.dumps([list(field) for field in fields])
    return hashlib.sha256(body.encode()).hexdigest()[:8]


def is_action(value: Any) -> bool:
    """Whether ``value`` may name an action: an identifier of at most 32 ASCII characters."""
    sound = isinstance(value, str) and value.isascii() and value.isidentifier()
    return sound and len(value) <= MAX_ACTION


def _plain(schema: Schema) -> dict[str, Any]:
    return {
        "name": schema.name,
        "history_length": schema.history_length,
        "tasks": schema.tasks,
        **{group: [vars(field) for field in schema.group(group)] for group in GROUPS},
    }


_OPTIONS: dict[Kind, frozenset[str]] = {
    "category": frozenset({"min_count", "buckets"}),
    "tags": frozenset({"min_count", "buckets", "max_values"}),
    "number": frozenset({"boundaries"}),
}


class _Reader:
    """Checks a parsed TOML document key by key; every complaint names the file and the field."""

    def __init__(self, file: str) -> None:
        self.file = file

    def fail(self, field: str, expected: str) -> SchemaError:
        return SchemaError(self.file, field, expected)

    def schema(self, document: Mapping[str, Any]) -> Schema:
        known = {"name", "history_length", "ts_unit", "session_gap", "history_actions", "task"}
        known |= {*GROUPS}
        for key in document:
            if key not in known:
                raise self.fail(key, f"one of {', '.join(sorted(known))}")
        groups = {group: self.fields(document, group) for group in GROUPS}
        if not groups["item"] or groups["item"][0].name != "item_id":
            raise self.fail("item", "a first item field named item_id")
        if groups["item"][0].kind != "category":
            raise self.fail("item_id.kind", "category")
        for field in groups["behaviour"]:
            if field.kind == "tags":
                raise self.fail(
                    f"{field.name}.kind", "category or number (records are fixed-width)"
                )
        tasks = self.tasks(document)
        schema = Schema(
            name=self.model_name(document),
            history_length=self.integer(
                document, "history_length", "", default=100, low=1, high=MAX_HISTORY
            ),
            ts_unit=self.ts_unit(document),
            session_gap=self.session_gap(document),
            history_actions=self.history_actions(document),
            tasks=tuple(tasks),
            actions=tuple(tasks.values()),
            **groups,
        )
        self.names_are_unique(schema)
        self.tables_agree(schema)
        return schema

    def model_name(self, document: Mapping[str, Any]) -> str:
        name = document.get("name")
        if not isinstance(name, str) or not is_name(name):
            raise self.fail("name", "a string of letters, digits, '-' and '_'")
        return name

    def ts_unit(self, document: Mapping[str, Any]) -> TsUnit:
        unit = document.get("ts_unit", "s")
        if unit not in ("s", "ms"):
            raise self.fail("ts_unit", f'"s" or "ms", found {unit!r}')
        return cast(TsUnit, unit)

    def session_gap(self, document: Mapping[str, Any]) -> int | None:
        if "session_gap" not in document:
            return None
        return self.integer(document, "session_gap", "", default=0, low=0, high=MAX_GAP)

    def history_actions(self, document: Mapping[str, Any]) -> tuple[str, ...]:
        actions = document.get("history_actions", ["click", "conversion"])
        sound = isinstance(actions, list) and actions and all(map(is_action, actions))
        if not sound or SHOWN in actions or len(set(actions)) < len(actions):
            expected = f"a list of actions (identifiers) that differ, {SHOWN} not among them"
            raise self.fail("history_actions", expected)
        return tuple(actions)

    def tasks(self, document: Mapping[str, Any]) -> dict[str, str]:
        """The action of each task, by default its name; that of ctr is click."""
        tables = document.get("task", [{"name": "ctr"}])
        if not isinstance(tables, list) or not tables:
            raise self.fail("task", "one or more [[task]] tables")
        found: dict[str, str] = {}
        for index, table in enumerate(tables):
            where = f"task[{index}]"
            if not isinstance(table, dict) or not {"name"} <= set(table) <= {"name", "action"}:
                raise self.fail(where, "a table with a name and maybe an action")
            name = self.name(table, where)
            if name in SCORED or (name == "ctr" and index):
                expected = f"a name other than {name} (a field of every score)"
                raise self.fail(f"{where}.name", expected)
            if name in found:
                raise self.fail("task", "task names that differ")
            action = table.get("action", "click" if name == "ctr" else name[:MAX_ACTION])
            if not is_action(action) or action == SHOWN:
                expected = f"an identifier of at most {MAX_ACTION} characters, not {SHOWN}"
                raise self.fail(f"{where}.action", expected)
            found[name] = action
        return found

    def name(self, table: Mapping[str, Any], where: str) -> str:
        name = table.get("name")
        if not isinstance(name, str) or not name.isidentifier() or not is_name(name):
            raise self.fail(f"{where}.name", "an identifier (ASCII letters, digits, '_')")
        if name in RESERVED:
            raise self.fail(f"{where}.name", f"a name other than {name} (reserved)")
        return name

    def fields(self, document: Mapping[str, Any], group: Group) -> tuple[Field, ...]:
        tables = document.get(group, [])
        if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
            raise self.fail(group, f"[[{group}]] tables, one per field")
        return tuple(self.field(table, f"{group}[{i}]") for i, table in enumerate(tables))

    def field(self, table: Mapping[str, Any], where: str) -> Field:
        name = self.name(table, where)
        kind = table.get("kind", "category")
        if not isinstance(kind, str) or kind not in _OPTIONS:
            raise self.fail(f"{name}.kind", f"category, tags or number, found {kind!r}")
        allowed = _OPTIONS[kind] | {"name", "kind", "table"}
        for key in table:
            if key not in allowed:
                raise self.fail(f"{name}.{key}", f"one of {', '.join(sorted(allowed))}")
        shared = table.get("table", name)
        if not isinstance(shared, str) or not is_name(shared):
            raise self.fail(f"{name}.table", "a string of letters, digits, '-' and '_'")
        if "buckets" in table and "min_count" in table:
            raise self.fail(f"{name}.min_count", "no min_count beside buckets, which learn nothing")
        if kind == "tags" and "max_values" not in table:
            raise self.fail(f"{name}.max_values", f"an integer from 1 to {MAX_TAGS}")
        return Field(
            name=name,
            kind=kind,
            table=shared,
            min_count=self.integer(table, "min_count", name, default=1, low=1, high=2**31),
            buckets=self.integer(table, "buckets", name, default=0, low=1, high=MAX_BUCKETS),
            max_values=self.integer(table, "max_values", name, default=1, low=1, high=MAX_TAGS),
            boundaries=self.boundaries(table, name) if kind == "number" else (),
        )

    def integer(
        self, table: Mapping[str, Any], key: str, owner: str, *, default: int, low: int, high: int
    ) -> int:
        if key not in table:
            return default
        value = table[key]
        if type(value) is not int or not low <= value <= high:
            where = f"{owner}.{key}" if owner else key
            raise self.fail(where, f"an integer from {low} to {high}")
        return value

    def boundaries(self, table: Mapping[str, Any], name: str) -> tuple[float, ...]:
        values = table.get("boundaries")
        expected = "a list of one or more finite numbers, strictly rising"
        if not isinstance(values, list) or not all(type(each) in (int, float) for each in values):
            raise self.fail(f"{name}.boundaries", expected)
        try:
            cuts = tuple(float(value) for value in values)
        except OverflowError:
            raise self.fail(f"{name}.boundaries", expected) from None
        rising = all(low < high for low, high in itertools.pairwise(cuts))
        if not cuts or not rising or not all(map(math.isfinite, cuts)):
            raise self.fail(f"{name}.boundaries", expected)
        return cuts

    def names_are_unique(self, schema: Schema) -> None:
        seen = set(schema.tasks)
        for field in schema.fields:
            if field.name in seen:
                raise self.fail(field.name, "a name that no other field or task has")
            seen.add(field.name)

    def tables_agree(self, schema: Schema) -> None:
        for field in schema.fields:
            first = schema.tables[field.table]
            for option in ("min_count", "buckets", "boundaries"):
                if getattr(field, option) != getattr(first, option):
                    expected = f"the same {option} as {first.name}, which shares its table"
                    raise self.fail(f"{field.name}.{option}", expected)


def is_name(text: str) -> bool:
    """Whether ``text`` may name a model or a table, and so a folder or a file."""
    plain = text.replace("-", "_").replace("_", "a")
    return text.isascii() and plain.isalnum() and len(text) <= MAX_NAME

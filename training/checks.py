"""How the columns of a team's tables are read, and what is wrong with a row: Ibis expressions.

Text is taken as a number by these patterns and by no engine's own rules, which differ.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ibis
import ibis.expr.datatypes as dt

from model.contract.encode import MAX_ID_CHARACTERS
from model.contract.schema import Field, Schema
from training.logs import SPLITS, LogsError
from training.rows import REASON

if TYPE_CHECKING:
    import ibis.expr.types as ir

POSITION = "#position"
INTEGER = r"^[+-]?[0-9]+\z"
DECIMAL = r"^[+-]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][+-]?[0-9]+)?\z"


class Checks:
    """The columns of one table in the canonical form, and the rules against its rows.

    ``raw`` has the wanted columns, `POSITION` and `REASON`; ``kinds`` are the types the columns
    have in the files. A type that can't be what is wanted raises `LogsError`.
    """

    def __init__(self, file: str, raw: ir.Table, kinds: Mapping[str, dt.DataType]) -> None:
        self.file, self.raw = file, raw
        self.kinds = {n: dt.string if kind.is_null() else kind for n, kind in kinds.items()}
        self.columns: dict[str, ir.Value] = {}
        self.rules: list[tuple[ir.BooleanValue, str]] = []

    def table(self) -> ir.Table:
        """All rows, each with its columns, position and reason; the first rule a row breaks."""
        reasons = [self.raw[REASON]]
        if self.rules:
            reasons.append(ibis.cases(*self.rules))
        raw = {POSITION: self.raw[POSITION], REASON: ibis.coalesce(*reasons)}
        return self.raw.select(**raw, **self.columns)

    def mark(self, broken: ir.BooleanValue, reason: str) -> None:
        """Give the rows a rule is true for its reason; the first reason of a row stays."""
        self.rules.append((broken, reason))

    def id(self, name: str) -> None:
        self.category(name)
        self.mark(self.columns[name].isnull(), f"empty {name}")

    def fields(self, fields: tuple[Field, ...]) -> None:
        for field in fields:
            read = {"category": self.category, "tags": self.tags, "number": self.number}[field.kind]
            read(field.name)

    def category(self, name: str) -> None:
        kind = self.kinds[name]
        if not _is_text(kind):
            found = f"text or integers (ids never go through floats), found {kind}"
            raise LogsError(self.file, name, found)
        value = self._value(name).cast("string")
        self.mark(value.length() > MAX_ID_CHARACTERS, f"{name} is too long")
        self.columns[name] = value

    def tags(self, name: str) -> None:
        """A list of texts or integers, or one text with '|' between the tags; missing: no tags."""
        kind, tags = self.kinds[name], self._value(name)
        if kind.is_array() and _is_text(kind.value_type):
            tags = tags if kind.value_type.is_string() else tags.map(lambda t: t.cast("string"))
        elif kind.is_string():
            tags = tags.re_split("[|]")  # of split, Spark would take "|" for a pattern
        else:
            raise LogsError(self.file, name, f"lists of text or integers, or text, found {kind}")
        tags = tags.filter(lambda tag: tag != "").fill_null(ibis.literal([], "array<string>"))
        long = tags.filter(lambda tag: tag.length() > MAX_ID_CHARACTERS)
        self.mark(long.length() > 0, f"{name} is too long")
        self.columns[name] = tags

    def number(self, name: str) -> None:
        value = self._real(name)
        unread = value.isnull() & self._value(name).notnull()
        # Ibis' isinf on Spark is of the positive one only.
        endless = value.abs() > sys.float_info.max
        self.mark(unread | value.isnan() | endless, f"{name} is not a finite number")
        self.columns[name] = value

    def probability(self) -> None:
        self.number("probability")
        outside = ~self.columns["probability"].between(0, 1)
        self.mark(outside, "probability is not from 0 to 1")

    def ts(self) -> None:
        kind, value = self.kinds["ts"], self._value("ts")
        if kind.is_string():
            value = ibis.ifelse(value.re_search(INTEGER), value.try_cast("int64"), None)
        elif kind.is_floating():
            value = value.cast("float64")
            whole = value.try_cast("int64")
            exact = (whole.cast("float64") == value) & (value < 2.0**63)
            value = ibis.ifelse(exact, whole, None)
        elif _is_whole(kind):
            value = value.try_cast("int64")
        elif not is_time(kind):
            raise LogsError(self.file, "ts", f"integers or dates, found {kind}")
        self.mark(value.isnull(), "ts is not an integer")
        self.columns["ts"] = value

    def label(self, task: str) -> None:
        value = self._real(task)
        known = value.isin([0.0, 1.0]).fill_null(False)
        # Ibis takes NaN for a missing value on Spark, and on no other engine.
        given = self._value(task).notnull() | value.isnan()
        self.mark(given & ~known, f"{task} is not 0, 1 or null")
        self.columns[task] = ibis.ifelse(known, value, None).cast("int8")

    def flag(self) -> None:
        """The column behaviour, as truth values or as text."""
        if self.kinds["behaviour"].is_boolean():
            value = self._value("behaviour")
        else:
            self.category("behaviour")
            text = self.columns["behaviour"].lower()
            value = ibis.cases((text.isin(["true", "1"]), True), (text.isin(["false", "0"]), False))
        self.mark(value.isnull(), "behaviour is not true or false")
        self.columns["behaviour"] = value

    def _value(self, name: str) -> Any:
        """A column of the files; empty text is a missing value."""
        value = self.raw[name]
        return value.nullif("") if self.kinds[name].is_string() else value

    def _real(self, name: str) -> Any:
        kind, value = self.kinds[name], self._value(name)
        if kind.is_string():
            return ibis.ifelse(value.re_search(DECIMAL), value.try_cast("float64"), None)
        if not (kind.is_boolean() or kind.is_numeric()):
            raise LogsError(self.file, name, f"numbers, found {kind}")
        return value.cast("float64")


def events(checks: Checks, schema: Schema) -> None:
    """Events: ids, ts, labels and fields; behaviour, split and probability where they are given."""
    first, given = schema.tasks[0], checks.kinds
    checks.id("user_id")
    checks.id("item_id")
    checks.ts()
    checks.fields((*schema.behaviour, *schema.context, *schema.ad))
    for task in schema.tasks:
        checks.label(task)
    columns = checks.columns
    if "behaviour" in given:
        checks.flag()
    else:
        columns["behaviour"] = (columns[first] == 1).fill_null(False)
    shown = columns[first].notnull()
    if "split" in given:
        checks.category("split")
        split = columns["split"]
        checks.mark(~split.isin(SPLITS), "split is not train, validation or test")
        checks.mark(shown & split.isnull(), "an impression without a split")
        checks.mark(~shown & split.notnull(), f"an impression without {first}")
    if "probability" in given:
        checks.probability()
    for task in schema.tasks[1:]:
        checks.mark(columns[task].isnull() == shown, "a label for some tasks only")
    checks.mark(~shown & ~columns["behaviour"], "neither a behaviour nor an impression")


def items(checks: Checks, schema: Schema) -> None:
    checks.id("item_id")
    checks.fields(schema.item[1:])


def users(checks: Checks, schema: Schema) -> None:
    checks.id("user_id")
    checks.fields(schema.user)


def once(table: ir.Table, key: str) -> ir.Table:
    """The rule against a second sound row with the same key."""
    sound = table[REASON].isnull()
    number = ibis.row_number().over(group_by=[key, sound], order_by=POSITION)
    reason = ibis.ifelse(sound & (number > 0), f"{key} again", table[REASON])
    return table.mutate(**{REASON: reason})


def is_time(kind: dt.DataType) -> bool:
    return bool(kind.is_timestamp() or kind.is_date())


def _is_whole(kind: dt.DataType) -> bool:
    """Whether all values are integers: unsigned ones of 64 bits are decimals on Spark."""
    return bool(kind.is_integer() or (kind.is_decimal() and kind.scale == 0))


def _is_text(kind: dt.DataType) -> bool:
    """Whether a column of ids keeps every digit as text."""
    return bool(kind.is_string()) or _is_whole(kind)

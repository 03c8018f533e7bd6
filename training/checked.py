"""One of a team's tables with its rows checked: under our names, in the canonical types, and with a
reason where a row is malformed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import ibis
import ibis.expr.datatypes as dt
import pyarrow as pa
import pyarrow.parquet as pq

from model.contract.schema import Schema
from training import checks
from training.checks import POSITION, Checks, is_time
from training.engines import NAME, ROW, Engine, EngineError
from training.logs import LISTED, LogsError, event_columns, item_columns, user_columns
from training.rows import LINE, REASON, Dropped
from training.table_files import Losses, Part, Parts

if TYPE_CHECKING:
    import ibis.expr.types as ir

LINE_BITS = 40  # of a position; above them is the place of the file
FILE, PLACE = "#file", "#place"


class Checked:
    """``table`` has the columns of `Checks.table`; an engine has written it into files."""

    def __init__(
        self,
        engine: Engine,
        parts: Parts,
        opened: Sequence[Part],
        schema: Schema,
        theirs: Mapping[str, str],
        work: Path,
        losses: Losses,
    ) -> None:
        self._engine, self._parts, self._schema, self._work = engine, parts, schema, work
        self._names = _names(opened[0], parts.name, schema, theirs)
        self._kinds = _kinds(opened, self._names)
        self._opened = list(opened)
        checked = self._checked()
        try:
            self.table = self._saved(checked)
        except EngineError:
            wanted = list(self._names.values())
            readable = parts.without_unreadable(opened, wanted, work, losses)
            if readable == self._opened:
                raise
            self._opened = readable
            self.table = self._saved(self._checked())

    @property
    def file(self) -> str:
        return str(self._parts.path)

    def sound(self) -> ir.Table:
        return self.table.filter(self.table[REASON].isnull())

    def dropped(self) -> Dropped:
        """How many rows are malformed, and the first of them.

        Raises `EngineError` unless every row of the files was read, once.
        """
        reason, position = self.table[REASON], self.table[POSITION]
        counted = self.table.aggregate(rows=self.table.count(), bad=reason.count())
        rows, bad = self._engine.rows(counted)[0]
        expected = sum(part.rows for part in self._opened)
        if rows != expected:
            raise EngineError(f"{self.file}: {rows} rows were read, the files say {expected}")
        listed = []
        if bad:
            first = self.table.filter(reason.notnull()).select(position, reason)
            for at, why in self._engine.rows(first.order_by(POSITION).limit(LISTED)):
                file = self._opened[at >> LINE_BITS].file
                listed.append((str(file), at & ((1 << LINE_BITS) - 1), why))
        return Dropped(self.file, rows, bad, tuple(listed))

    def _checked(self) -> ir.Table:
        each = Checks(self.file, self._raw(), self._kinds)
        if self._parts.name == "events":
            checks.events(each, self._schema)
            return each.table()
        if self._parts.name == "items":
            checks.items(each, self._schema)
            return checks.once(each.table(), "item_id")
        checks.users(each, self._schema)
        return checks.once(each.table(), "user_id")

    def _saved(self, table: ir.Table) -> ir.Table:
        folder = self._work / self._parts.name
        shutil.rmtree(folder, ignore_errors=True)  # what an engine left that failed
        files = self._engine.save(table, folder)
        return self._engine.scan(self._parts.name, files, table.schema())

    def _raw(self) -> ir.Table:
        """The files' rows under our names, with their position, and their reason if they are staged
        from what is malformed already."""
        sides = [self._side(staged) for staged in (False, True)]
        rows = ibis.union(*(side for side in sides if side is not None))
        listed = self._work / f"{self._parts.name}-files.parquet"
        paths = [part.path.name for part in self._opened]
        pq.write_table(pa.table({FILE: paths, PLACE: range(len(paths))}), listed)
        places = self._engine.scan(
            f"{self._parts.name}_files", [listed], ibis.schema({FILE: "string", PLACE: "int64"})
        ).select(FILE, PLACE)
        rows = rows.inner_join(places, FILE)
        position = rows[PLACE] * (1 << LINE_BITS) + rows[LINE]
        missing = {our: ibis.null("string") for our, kind in self._kinds.items() if kind.is_null()}
        return rows.mutate(**{POSITION: position}, **missing).drop(FILE, PLACE, LINE)

    def _side(self, staged: bool) -> ir.Table | None:
        """The parts that are staged, or those that are not."""
        files = [part.path for part in self._opened if part.staged is staged]
        if not files:
            return None
        given = {our: kind for our, kind in self._kinds.items() if not kind.is_null()}
        schema = {self._names[our]: kind for our, kind in given.items()}
        unit = self._schema.ts_unit
        times = {self._names[our]: unit for our, kind in given.items() if is_time(kind)}
        if staged:
            schema |= {LINE: dt.int64, REASON: dt.string}
        view = f"{self._parts.name}_{'staged' if staged else 'in_place'}"
        rows = self._engine.scan(view, files, ibis.schema(schema), times)
        line = rows[LINE] if staged else rows[ROW] + 1
        reason = rows[REASON] if staged else ibis.null("string")
        ours = {our: rows[self._names[our]] for our in given}
        return rows.select(**{FILE: rows[NAME], LINE: line, REASON: reason}, **ours)


def named(
    found: Sequence[str], name: str, schema: Schema, theirs: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Our names of a table's columns, each with its name among those ``found`` in the files, and
    the columns that the table must have and has not."""
    taken = {their for their in theirs.values() if their in found}
    must, may = columns(name, schema)
    names = {}
    for our in (*must, *may):
        if theirs.get(our) in taken:
            names[our] = theirs[our]
        elif our in found and our not in taken:
            names[our] = our
    return names, [our for our in must if our not in names]


def _names(part: Part, name: str, schema: Schema, theirs: Mapping[str, str]) -> dict[str, str]:
    names, missing = named(part.schema.names, name, schema, theirs)
    if missing:
        raise LogsError(str(part.file), missing[0], "a column of this name, found none")
    return names


def columns(name: str, schema: Schema) -> tuple[list[str], list[str]]:
    """The columns that a table must have, and those that it may have."""
    if name == "items":
        return list(item_columns(schema)), []
    if name == "users":
        return list(user_columns(schema)), []
    optional = ["behaviour", "split"]
    return [n for n in event_columns(schema) if n not in optional], [*optional, "probability"]


def _kinds(opened: Sequence[Part], names: Mapping[str, str]) -> dict[str, dt.DataType]:
    """The types of the columns, which all files of a table have alike."""
    first = {our: opened[0].schema.field(their).type for our, their in names.items()}
    for part in opened[1:]:
        for our, their in names.items():
            if their not in part.schema.names:
                raise LogsError(str(part.file), our, "a column of this name, found none")
            if (found := part.schema.field(their).type) != first[our]:
                expected = f"type {first[our]} as in {opened[0].file.name}, found {found}"
                raise LogsError(str(part.file), our, expected)
    return dict(ibis.Schema.from_pyarrow(pa.schema(list(first.items()))).items())

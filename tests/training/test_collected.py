"""The folder of collected logs: what is written is read, once; what is erased is gone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date
from functools import partial
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.contract.log import Event, Snapshot
from tests.training.entries import (
    DAY,
    NOON,
    erasure,
    event,
    fields,
    on_disk,
    score,
    taken,
)
from training import collected
from training.collected import Collected, Writer
from training.entries import COLUMNS, Taken, row_of
from training.files import Files
from training.logs import LogsError

TODAY = date(2024, 10, 4)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    with Files(tmp_path).alone():
        yield Writer(Files(tmp_path), "s")


def later(writer: Writer, folder: Path) -> Writer:
    """A writer that has only the files to go by."""
    return Writer(Files(folder), "s")


def test_an_event_is_read_back(tmp_path: Path, writer: Writer) -> None:
    """Under the day of its ts, with its place in the stream and its extra fields as JSON."""
    sent = event("u", "ü", NOON + 5, request_id="r", fields={"price": 1.5, "tags": ["a"]})
    written = writer.write(taken([sent], first=7))
    assert len(written.new["events"]) == 1
    [row] = Collected(tmp_path).events().to_dicts()
    assert json.loads(row.pop("fields")) == {"price": 1.5, "tags": ["a"]}
    assert row == {
        "key": sent.key,
        "partition": row["partition"],
        "entry": "000000000000007-0000000000",
        "user_id": "u",
        "received": sent.received,
        "item_id": "ü",
        "action": "click",
        "ts": NOON + 5,
        "request_id": "r",
    }
    assert Collected(tmp_path).days("events") == [TODAY]


def test_a_broken_file_is_named(tmp_path: Path, writer: Writer) -> None:
    """To who reads and to who writes, of however many: as after a disk was at fault."""
    writer.write(taken([event("u", "a", NOON)]))
    [path] = (tmp_path / "events").glob("*/*.parquet")
    path.write_bytes(path.read_bytes()[:100])
    readers = (Collected(tmp_path).events, partial(Collected(tmp_path).events, since=0))
    again = partial(later(writer, tmp_path).write, taken([event("u", "b", NOON)], first=9))
    for step in (*readers, again):
        with pytest.raises(LogsError, match=rf"{path}: file: expected a readable Parquet file"):
            step()
    path.parent.rename(tmp_path / "events" / "date=then")
    with pytest.raises(LogsError, match="date=then: name: expected date=YYYY-MM-DD"):
        Collected(tmp_path).days("events")


def test_a_score_is_read_back(tmp_path: Path, writer: Writer) -> None:
    """Nothing of an answered request is lost; what depends on a schema is JSON."""
    raw = [{"item_id": "b", "ts": 3}]
    sent = score(
        "u", "r", ["a", None, "c"], history=Snapshot(1, 3, "ab", raw), unknown=[1], degraded="late"
    )
    writer.write(taken([sent]))
    [row] = Collected(tmp_path).scores().to_dicts()
    assert row["candidates"] == ["a", None, "c"]
    assert row["unknown"] == [1]
    assert json.loads(row["probability"]) == {"ctr": [0.25, 0.25, 0.25]}
    assert json.loads(row["raw"]) == raw
    assert json.loads(row["user"]) == {"city": "Köln"}
    assert (row["length"], row["newest"], row["digest"]) == (1, 3, "ab")
    assert (row["model"], row["version"], row["degraded"]) == ("shop", 1, "late")
    assert row["key"] == sent.key


def test_days_are_chosen_from_first_to_last(tmp_path: Path, writer: Writer) -> None:
    """Both included; a reader of nothing gets a table without rows."""
    writer.write(taken([event("u", ts=NOON + day * DAY) for day in range(4)]))
    read = Collected(tmp_path).events(date(2024, 10, 5), date(2024, 10, 6))
    assert read["ts"].to_list() == [NOON + DAY, NOON + 2 * DAY]
    empty = Collected(tmp_path / "nothing")
    assert empty.events().schema == pl.Schema(COLUMNS["events"])
    assert empty.scores().is_empty()
    assert empty.days("events") == []


def test_the_unit_of_ts_decides_the_day(tmp_path: Path) -> None:
    """A ts in ms is of the same day as the one in s."""
    with Files(tmp_path).alone():
        Writer(Files(tmp_path), "ms").write(taken([event("u", ts=NOON * 1000)]))
    assert Collected(tmp_path).days("events") == [TODAY]


def test_what_comes_again_is_known(tmp_path: Path, writer: Writer) -> None:
    """By its key, in one batch, in two, and by a writer that has only the files to go by."""
    sent = [event("u"), event("u", "j"), score("u", "r")]
    again = event("u", received=9, request_id="other")
    assert len(writer.write(taken([*sent, again])).new["events"]) == 2
    for each in (writer, later(writer, tmp_path)):
        written = each.write(taken([*sent, again]))
        assert sum(len(rows) for rows in written.new.values()) == 0
        assert written.known == {"events": 3, "scores": 1}
    assert len(on_disk(tmp_path, "events")) == 2
    assert len(on_disk(tmp_path, "scores")) == 1


def test_a_reader_counts_a_key_once(tmp_path: Path, writer: Writer) -> None:
    """Even where two files hold it; the first in the order of the stream counts."""
    writer.write(taken([event("u", request_id="first")], first=1))
    [path] = (tmp_path / "events").rglob("*.parquet")
    copy = pl.read_parquet(path).with_columns(
        pl.lit("000000000000002-0000000000").alias("entry"), pl.lit("second").alias("request_id")
    )
    copy.write_parquet(path.with_name("0.parquet"))
    assert Collected(tmp_path).events()["request_id"].to_list() == ["first"]


@pytest.mark.parametrize("together", [True, False], ids=["one batch", "two batches"])
def test_an_erased_user_is_gone_from_the_files(
    tmp_path: Path, writer: Writer, together: bool
) -> None:
    """All rows from before are taken out, other users' stay, and who comes back is kept."""
    before = [event("u", "old"), event("v", "old"), score("u", "r1"), score("v", "r1")]
    after = [event("u", "new", NOON + 9), score("u", "r2", received=(NOON + 9) * 1000)]
    rest = [erasure("u", NOON + 5), *after]
    if together:
        writer.write(taken([*before, *rest]))
    else:
        writer.write(taken(before))
        written = later(writer, tmp_path).write(taken(rest, first=NOON * 1000 + 100))
        assert written.removed == {"events": 1, "scores": 1}
        assert written.erased == ["u"]
    for rows in (on_disk(tmp_path, "events"), Collected(tmp_path).events()):
        assert sorted(rows.select("user_id", "item_id").rows()) == [("u", "new"), ("v", "old")]
    for rows in (on_disk(tmp_path, "scores"), Collected(tmp_path).scores()):
        assert sorted(rows.select("user_id", "request_id").rows()) == [("u", "r2"), ("v", "r1")]


def test_before_is_by_place_or_by_clock(tmp_path: Path, writer: Writer) -> None:
    """An event that a fast clock stamped, and one that came late into the stream, both go."""
    sent = [
        event("u", "stamped late", received=(NOON + 60) * 1000),
        erasure("u", NOON + 5),
        event("u", "came late", received=(NOON + 4) * 1000),
    ]
    writer.write(taken(sent))
    assert on_disk(tmp_path, "events").is_empty()


def test_an_event_that_was_erased_may_happen_again(tmp_path: Path, writer: Writer) -> None:
    """The key of what is gone is not known any more."""
    writer.write(taken([event("u")], first=1))
    writer.write(taken([erasure("u", NOON)], first=2))
    written = writer.write(taken([event("u", received=(NOON + 1) * 1000)], first=3))
    assert len(written.new["events"]) == 1
    assert len(Collected(tmp_path).events()) == 1


def test_an_erasure_that_was_interrupted_is_done_when_it_comes_again(
    tmp_path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own row is there already, and readers obey it; the rows go with the second try."""
    writer.write(taken([event("u")], first=1))
    monkeypatch.setattr(Files, "rewrite", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        writer.write(taken([erasure("u")], first=2))
    monkeypatch.undo()
    assert len(on_disk(tmp_path, "events")) == 1
    assert Collected(tmp_path).events().is_empty()
    written = later(writer, tmp_path).write(taken([erasure("u")], first=2))
    assert written.removed == {"events": 1}
    assert on_disk(tmp_path, "events").is_empty()
    assert len(on_disk(tmp_path, "erased")) == 1


def test_an_erased_user_is_gone_from_what_stood_before(tmp_path: Path, writer: Writer) -> None:
    """Rows of base/ go too, and its files stay, even without rows."""
    (tmp_path / "base").mkdir()
    for name, users in (("events", ["u", "v"]), ("users", ["u"])):
        frame = pl.DataFrame({"user_id": users, "n": range(len(users))})
        frame.write_parquet(tmp_path / "base" / f"{name}.parquet")
    assert writer.write(taken([erasure("u")])).removed == {"base": 2}
    read = {n: pl.read_parquet(tmp_path / "base" / f"{n}.parquet") for n in ("events", "users")}
    assert read["events"].rows() == [("v", 1)]
    assert read["users"].is_empty()


def test_the_last_erasure_counts(tmp_path: Path, writer: Writer) -> None:
    """A user who was erased twice has one row, with the later time."""
    writer.write(taken([erasure("u", NOON), erasure("u", NOON + 3), erasure("v", NOON)]))
    found = Collected(tmp_path).erased().sort("user_id").select("user_id", "until").rows()
    assert found == [("u", (NOON + 3) * 1000), ("v", NOON * 1000)]


def test_an_entry_that_is_gone_from_the_stream_is_left_out(tmp_path: Path, writer: Writer) -> None:
    """It was erased before it was collected."""
    written = writer.write([Taken(3, "5-0", {})])
    assert all(rows.is_empty() for rows in written.new.values())


def good() -> dict[bytes, bytes]:
    return fields(event("u"))


def changed(**values: object) -> dict[bytes, bytes]:
    body = json.loads(good()[b"d"]) | values
    return good() | {b"d": json.dumps(body).encode()}


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {b"k": b"event"},
        good() | {b"k": b"other"},
        good() | {b"k": b"\xff"},
        good() | {b"d": b"\xff\x00"},
        good() | {b"d": b"[" * 100_000},
        good() | {b"d": b"[]"},
        changed(user_id=7),
        changed(user_id="\ud800"),
        changed(item_id=None),
        changed(ts="5"),
        changed(ts=5.0),
        changed(ts=True),
        changed(ts=2**63),
        changed(ts=2**62),
        changed(received=None),
        changed(fields={"price": float("nan")}),
        changed(request_id=3),
        changed(more=1),
        fields(score("u", "r")) | {b"d": b'{"history": 3}'},
        fields(score("u", "r", probability={"ctr": []})),
        fields(score("u", "r", probability={"ctr": ["high"]})),
        fields(score("u", "r", probability=[0.5])),
        fields(score("u", "r", unknown=["x"])),
        fields(score("u", "r", received=2**62)),
        fields(score("u", "r", version="7")),
        fields(erasure("u")) | {b"d": b'{"user_id": "u", "received": 0.5}'},
    ],
)
def test_what_cant_be_read_is_kept_and_blocks_nothing(
    tmp_path: Path, writer: Writer, broken: dict[bytes, bytes]
) -> None:
    """Its bytes are kept as they were, once, and what came with it is written."""
    if not broken:
        broken = {b"hello": b"\xfe"}
    batch = [Taken(3, "5-1", broken), *taken([event("u"), score("u", "r0")])]
    written = writer.write(batch)
    assert len(written.new["events"]) == len(written.new["scores"]) == 1
    later(writer, tmp_path).write(batch)
    [row] = on_disk(tmp_path, "unreadable").to_dicts()
    assert row["raw"] == [each for pair in broken.items() for each in pair]
    assert (row["partition"], row["entry"]) == (3, "000000000000005-0000000001")
    assert row["why"]
    assert len(on_disk(tmp_path, "events")) == 1


def test_what_cant_be_read_is_erased_with_its_user(tmp_path: Path, writer: Writer) -> None:
    """The stream says whose it is."""
    entry = Taken(taken([event("u")])[0].partition, "1-0", good() | {b"d": b"nonsense"})
    writer.write([entry])
    assert writer.write(taken([erasure("u")])).removed == {"unreadable": 1}
    assert on_disk(tmp_path, "unreadable").is_empty()


def test_small_files_of_a_day_become_one(
    tmp_path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that there are never many; large ones are left alone, and no row is lost or doubled."""
    for n in range(40):
        writer.write(taken([event("u", f"i{n}")], first=n))
        files = list((tmp_path / "events").rglob("*.parquet"))
        assert len(files) < collected.TOGETHER
    assert len(on_disk(tmp_path, "events")) == 40
    assert Collected(tmp_path).events()["item_id"].to_list() == [f"i{n}" for n in range(40)]
    monkeypatch.setattr(collected, "SMALL_BYTES", 1)
    for n in range(40, 60):
        writer.write(taken([event("u", f"i{n}")], first=n))
    assert len(list((tmp_path / "events").rglob("*.parquet"))) >= 20


def test_a_file_that_goes_while_it_is_read_is_found_in_another(
    tmp_path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that listed small files reads what became of them."""
    for n in range(3):
        writer.write(taken([event("u", f"i{n}")], first=n))
    files, read = Files(tmp_path), pl.read_parquet

    def after_a_merge(path: Path, **options: object) -> pl.DataFrame:
        monkeypatch.undo()
        files.merge(files.list("events"))
        return read(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(pl, "read_parquet", after_a_merge)
    assert Collected(tmp_path).events()["item_id"].to_list() == ["i0", "i1", "i2"]


IDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=9)


@given(user=IDS, item=IDS, ts=st.integers(-(2**40), 2**35), note=st.none() | IDS)
def test_any_event_has_a_row(user: str, item: str, ts: int, note: str | None) -> None:
    """Whatever its ids; from the row the event can be had again."""
    sent = Event(user, item, "click", ts, 9, note, {"a": item})
    kind, _, row = row_of(Taken(3, "12-3", fields(sent)), "s")
    if kind == "events":
        found = {name: row[name] for name in ("user_id", "item_id", "action", "ts", "received")}
        again = Event(**found, request_id=row["request_id"], fields=json.loads(row["fields"]))
        assert (again, row["key"]) == (sent, sent.key)
    else:
        assert not -719_162 <= ts // DAY <= 2_932_896  # days of the years 1 to 9999

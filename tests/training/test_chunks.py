"""Prepared logs in chunks: the same logs, and what is said of those that can't be read."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.chunks import Chunks, write
from training.golden import golden_requests
from training.logs import Logs, LogsError, Malformed, replacing
from training.vocabulary import learn
from training.window import learnt_until

FULL = Path("/dev/full")
GROUP = 100  # rows


def in_row_groups(logs: Logs, folder: Path, rows: int = GROUP) -> Path:
    """Prepared logs whose events have row groups of so many rows."""
    logs.write(folder)
    logs.events.write_parquet(folder / "events.parquet", row_group_size=rows)
    return folder


def spoil(folder: Path, group: int) -> None:
    """Overwrite the first bytes of a row group's item ids."""
    path = folder / "events.parquet"
    metadata = pq.ParquetFile(path).metadata
    names = [metadata.schema.column(at).path for at in range(metadata.num_columns)]
    column = metadata.row_group(group).column(names.index("item_id"))
    begin = column.dictionary_page_offset or column.data_page_offset
    content = bytearray(path.read_bytes())
    content[begin : begin + 20] = b"\xff" * 20
    path.write_bytes(content)


def by_user(logs: Logs, size: int) -> Iterator[Logs]:
    """Chunks of so many users."""
    ids = logs.events["user_id"].unique(maintain_order=True)
    for begin in range(0, len(ids), size):
        some = pl.col("user_id").is_in(ids[begin : begin + size].implode())
        yield replace(logs, events=logs.events.filter(some), users=logs.users.filter(some))


@settings(max_examples=12, deadline=None)
@given(rows=st.integers(5, 500), least=st.integers(1, 500))
def test_chunks_are_the_logs_cut_between_users(
    shop_logs: Logs, tmp_path_factory: pytest.TempPathFactory, rows: int, least: int
) -> None:
    """However many rows a row group and a chunk have: no user is in two chunks."""
    folder = in_row_groups(shop_logs, tmp_path_factory.mktemp("logs"), rows)
    chunks = Chunks(folder, events=least)
    found = list(chunks.chunks())
    assert pl.concat([chunk.events for chunk in found]).equals(shop_logs.events)
    assert len(chunks) == len(shop_logs)
    users = [set(chunk.events["user_id"]) for chunk in found]
    assert sum(map(len, users)) == shop_logs.events["user_id"].n_unique()
    known = set(shop_logs.users["user_id"])
    longest = int(shop_logs.events.group_by("user_id").len()["len"].to_numpy().max())
    for chunk, of_chunk in zip(found, users, strict=True):
        assert of_chunk & known <= set(chunk.users["user_id"])
        assert chunk.items.equals(shop_logs.items)
        assert chunk is found[-1] or len(chunk) + longest >= least


def test_what_is_learnt_from_chunks_is_what_is_learnt_from_all(
    shop_logs: Logs, tmp_path: Path
) -> None:
    """Ids with their last days, golden requests, and until when was learnt."""
    chunks = Chunks(in_row_groups(shop_logs, tmp_path), events=GROUP)
    assert len(list(chunks.chunks())) > 3
    for name, seen in learn(shop_logs, forget_days=0).items():
        found = learn(chunks, forget_days=0)[name]
        assert found.keys.tolist() == seen.keys.tolist()
        assert found.day.tolist() == seen.day.tolist()
    assert golden_requests(chunks) == golden_requests(shop_logs)
    assert learnt_until(chunks) == learnt_until(shop_logs)


def test_only_the_columns_asked_for_are_read(shop_logs: Logs, tmp_path: Path) -> None:
    """And user_id, by which chunks are cut."""
    chunks = Chunks(in_row_groups(shop_logs, tmp_path), events=GROUP)
    found = pl.concat([chunk.events for chunk in chunks.chunks(("ts",))])
    assert found.equals(shop_logs.events.select("user_id", "ts"))


def test_a_row_group_that_cannot_be_read_is_named(shop_logs: Logs, tmp_path: Path) -> None:
    """With the file; the chunks before it came."""
    spoil(in_row_groups(shop_logs, tmp_path), 2)
    chunks = Chunks(tmp_path, events=GROUP).chunks()
    next(chunks)
    with pytest.raises(LogsError, match=r"events\.parquet: row group 2: expected readable rows"):
        list(chunks)


def test_row_groups_that_cannot_be_read_may_be_left_out(shop_logs: Logs, tmp_path: Path) -> None:
    """They are counted once, however often the logs are read; all other events are there."""
    spoil(in_row_groups(shop_logs, tmp_path), 2)
    chunks = Chunks(tmp_path, skip=True, events=GROUP)
    for _ in range(2):
        found = pl.concat([chunk.events for chunk in chunks.chunks()])
        before, after = shop_logs.events.head(2 * GROUP), shop_logs.events.slice(3 * GROUP)
        assert found.equals(pl.concat([before, after]))
    assert chunks.skipped == {2: GROUP}


def test_users_must_be_sorted_across_chunks(shop_logs: Logs, tmp_path: Path) -> None:
    """Each chunk is sorted, the file is not."""
    in_row_groups(shop_logs, tmp_path)
    parts = [chunk.events for chunk in by_user(shop_logs, 9)]
    pl.concat(parts[::-1]).write_parquet(tmp_path / "events.parquet", row_group_size=GROUP)
    with pytest.raises(LogsError, match=r"events\.parquet: ts: expected rows sorted by user_id"):
        list(Chunks(tmp_path, events=1).chunks())


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("item_id", pl.lit(""), "item_id: expected ids that are not empty"),
        ("split", pl.lit("later"), "split: expected train, validation, test or null"),
        ("ts", pl.col("ts").cast(pl.Int32), "ts: expected type Int64, found Int32"),
        ("probability", pl.lit(0.5, pl.Float32), "probability: expected type Float64"),
    ],
)
def test_chunks_are_held_to_the_canonical_form(
    shop_logs: Logs, tmp_path: Path, column: str, value: pl.Expr, expected: str
) -> None:
    """What is wrong is told as of logs that are read in one piece."""
    shop_logs.write(tmp_path)
    events = shop_logs.events.with_columns(value.alias(column))
    events.write_parquet(tmp_path / "events.parquet", row_group_size=GROUP)
    with pytest.raises(LogsError, match=expected):
        list(Chunks(tmp_path).chunks())
    with pytest.raises(LogsError, match=expected):
        Logs.read(tmp_path)


def test_a_file_that_is_no_parquet_is_named(shop_logs: Logs, tmp_path: Path) -> None:
    shop_logs.write(tmp_path)
    (tmp_path / "events.parquet").write_bytes(b"nothing")
    with pytest.raises(LogsError, match=r"events\.parquet: file: expected a readable Parquet file"):
        Chunks(tmp_path)


def test_logs_without_events_are_one_empty_chunk(shop_logs: Logs, tmp_path: Path) -> None:
    replace(shop_logs, events=shop_logs.events.clear()).write(tmp_path)
    assert [len(chunk) for chunk in Chunks(tmp_path).chunks()] == [0]


def test_logs_written_in_chunks_are_those_written_whole(shop_logs: Logs, tmp_path: Path) -> None:
    """Rows, types and counts."""
    done = write(tmp_path, by_user(shop_logs, 5))
    found = Logs.read(tmp_path)
    assert found.events.equals(shop_logs.events)
    assert found.users.sort("user_id").equals(
        shop_logs.users.filter(pl.col("user_id").is_in(found.events["user_id"])).sort("user_id")
    )
    assert found.items.equals(shop_logs.items)
    assert done == replace(found.written(), malformed=shop_logs.malformed)


def test_chunks_in_another_order_leave_what_was_there(shop_logs: Logs, tmp_path: Path) -> None:
    """They are refused, and the files of before are untouched."""
    shop_logs.write(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(LogsError, match="chunks sorted by user_id"):
        write(tmp_path, list(by_user(shop_logs, 9))[::-1])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
@pytest.mark.parametrize("file", ["events.parquet", "items.parquet", "users.parquet"])
def test_a_full_disk_is_named_and_leaves_what_was_there(
    shop_logs: Logs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """Whichever file it is; written whole or in chunks."""
    shop_logs.write(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    @contextmanager
    def full(folder: Path) -> Iterator[Path]:
        with replacing(folder) as fresh:
            (fresh / file).symlink_to(FULL)
            yield fresh

    monkeypatch.setattr("training.chunks.replacing", full)
    monkeypatch.setattr("training.logs.replacing", full)
    expected = f"{file}: file: expected a file that can be written .*No space left"
    with pytest.raises(LogsError, match=expected):
        write(tmp_path, by_user(shop_logs, 5))
    with pytest.raises(LogsError, match=expected):
        shop_logs.write(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_chunks_left_out_is_added_up(shop_logs: Logs, tmp_path: Path) -> None:
    """By reason; what was malformed comes with each and is counted once."""
    chunks = list(by_user(shop_logs, 9))
    malformed = Malformed(5, (("file", 1, "bad"),), 1)
    left_out = [{"first": 3} if at == 0 else {"each": at} for at in range(len(chunks))]
    done = write(
        tmp_path,
        [
            replace(chunk, left_out=of, malformed=malformed)
            for chunk, of in zip(chunks, left_out, strict=True)
        ],
    )
    assert done.left_out == {"first": 3, "each": sum(range(len(chunks)))}
    assert done.malformed == malformed


def test_a_chunk_is_not_in_memory_when_the_next_is_made(shop_logs: Logs, tmp_path: Path) -> None:
    """What is written holds one of them at a time."""
    alive: list[weakref.ref[Logs]] = []

    def made(chunk: Logs) -> Logs:
        assert not any(before() is not None for before in alive)
        new = replace(chunk)
        alive.append(weakref.ref(new))
        return new

    write(tmp_path, map(made, list(by_user(shop_logs, 5))))
    assert len(alive) > 3


def test_a_chunk_may_have_profiles_only(shop_logs: Logs, tmp_path: Path) -> None:
    """Wherever it comes: its users are written with those of the others."""
    chunks = list(by_user(shop_logs, 9))
    chunks[::2] = [replace(chunk, events=chunk.events.clear()) for chunk in chunks[::2]]
    done = write(tmp_path, chunks)
    found = Logs.read(tmp_path)
    assert found.events.equals(pl.concat([chunk.events for chunk in chunks]))
    assert done.users == found.users.height == sum(chunk.users.height for chunk in chunks)
    assert len(list(Chunks(tmp_path, events=1).chunks())) > 1

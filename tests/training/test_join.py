"""Joining: what trains is what was scored, labels are what followed, the rest is counted."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from model.contract.encode import Request
from model.contract.log import Erased, Event
from model.contract.schema import Schema
from tests.support import TOY
from tests.training.collecting import collect
from tests.training.live import MORNING, Live, base_logs
from training.__main__ import app
from training.collected import Collected
from training.dataset import build, learn_encoder
from training.join import Joined, Rules, join, to_logs
from training.logs import Logs, LogsError
from training.window import digest

DAY = date(2023, 11, 15)
LATE = "whose history has older behaviours that came after the score"
LATER = MORNING + 5 * 86_400


@pytest.fixture
def live(tmp_path: Path) -> Live:
    logs = base_logs(tmp_path / "logs" / "base", TOY)
    logs.write(tmp_path / "logs" / "base")
    return Live.start(tmp_path / "repository", logs)


def joined(live: Live, tmp_path: Path, rules: Rules | None = None, last: date = DAY) -> Joined:
    """The entries so far, collected and joined, long after the last of them."""
    entries = [*live.entries]
    live.event("nobody", "i0", "seen", LATER)
    collected = collect(tmp_path / "logs", live.entries)
    live.entries[:] = entries
    return join(collected, DAY, last, rules)


def shown(logs: Logs) -> list[dict[str, Any]]:
    """The impressions, oldest first."""
    return logs.events.filter(pl.col("split").is_not_null()).sort("ts", "item_id").to_dicts()


def test_what_trains_is_what_was_scored(live: Live, tmp_path: Path) -> None:
    """Through files and join, each impression has the rows and the history of its score, with the
    store's own ties, repeats and late comers before it; its label is whether it was clicked."""
    draw = np.random.default_rng(3)
    wanted: dict[tuple[str, int, str], int] = {}
    requests: dict[tuple[str, int], tuple[int, Request]] = {}
    users = {f"u{n}": {"gender": "MF"[n % 2], "income": 7.5 * n} for n in range(4)}
    for step in range(60):
        ts, user = MORNING + 10 * step, f"u{int(draw.integers(4))}"
        candidates = [f"i{n}" for n in draw.choice(60, 5, replace=False)]
        columns = {"price": [None if n == 2 else float(n) for n in range(5)]}
        context, request = {"hour": step % 24}, f"r{step}"
        history = live.bundle.encoder.records(live.histories[user])
        asked = Request(candidates, history, users[user], context, columns=columns)
        requests[user, ts + 1] = len(live.entries), asked
        live.score(
            request, user, candidates, ts, profile=users[user], context=context, columns=columns
        )
        for item in candidates[:3]:
            live.event(user, item, "impression", ts + 1, request)
            clicked = bool(draw.random() < 0.4)
            wanted[user, ts + 1, item] = int(clicked)
            if clicked:
                at = ts + int(draw.integers(1, 4))  # also at the very second, also two at once
                live.event(user, item, "click", at, request, rating=str(step % 5 + 1))
                live.event(user, item, "conversion", at, request, rating=str(step % 5 + 1))
        if step % 3 == 0:
            live.event(user, f"i{step % 7}", "click", ts - 25, rating="3")
    late = {
        place
        for place, (at, asked) in requests.items()
        if any(
            isinstance(each, Event)
            and each.user_id == place[0]
            and each.action == "click"
            and each.ts <= max(asked.history["ts"], default=0)
            for each in live.entries[at:]
        )
    }
    found = joined(live, tmp_path)
    assert (found.tally.kept, found.tally.left_out) == (180, {})
    encoder = live.bundle.encoder
    checked = 0
    for dataset in build(found.logs, encoder).values():
        for at in range(len(dataset)):
            batch, _ = dataset.batch(np.array([at]), np.array([at + 1]))
            event = found.logs.events.row(int(dataset.event[at]), named=True)
            assert event["ctr"] == wanted[event["user_id"], event["ts"], event["item_id"]]
            _, request = requests[event["user_id"], event["ts"]]
            scored, _ = encoder.encode(request)
            place = list(request.candidates).index(event["item_id"])
            for name in ("item", "ad", "context"):
                assert getattr(batch, name)[0].tolist() == getattr(scored, name)[place].tolist()
            assert batch.user.tolist() == scored.user.tolist()
            checked += 1
            if (event["user_id"], event["ts"]) not in late:
                history = batch.history[0, batch.start[0] : batch.stop[0]]
                assert history.tolist() == scored.history[0].tolist()
    assert checked == 180
    assert 0 < len(late) < 30
    assert found.tally.notes[LATE] == 3 * len(late)


def test_what_is_left_out_is_counted_with_its_reason(live: Live, tmp_path: Path) -> None:
    """Each impression and each outcome that can't be used has one reason."""
    live.score("r", "u0", ["i1", "i2", "i2"], MORNING)
    live.score("broken", "u0", ["i1"], MORNING, degraded="history_unavailable")
    shows = [
        ("i1", "r", 5),
        ("i2", "r", 6),
        ("i1", "r", 7),  # shown before under this request id
        ("i1", None, 8),  # no request id
        ("i1", "unlogged", 9),  # no score record
        ("i1", "broken", 10),  # scored without the store
        ("i9", "r", 11),  # not a candidate of its request
    ]
    for item, request, ts in shows:
        live.event("u0", item, "impression", MORNING + ts, request)
    window = 100
    clicks = [
        ("i1", "r", 5 + window),
        ("i2", "r", 7 + window),  # after the window
        ("i2", "r", 5),  # before its impression
        ("i1", None, 8),  # no request id
        ("i1", "nobody's", 9),  # no impression in these days
        ("i9", "r", 12),  # its impression is left out
    ]
    for item, request, ts in clicks:
        live.event("u0", item, "click", MORNING + ts, request)
    found = joined(live, tmp_path, Rules(window_seconds=window))
    assert found.tally.kept == 2
    assert found.tally.left_out == dict.fromkeys(
        [
            "shown before under this request id",
            "no request id",
            "no score record",
            "scored without the store",
            "not a candidate of its request",
        ],
        1,
    )
    assert found.tally.outcomes == 6
    assert found.tally.vain == dict.fromkeys(
        [
            "after the window",
            "before its impression",
            "no request id",
            "no impression in these days",
            "its impression is left out",
        ],
        1,
    )
    assert [(row["item_id"], row["ctr"]) for row in shown(found.logs)] == [("i1", 1), ("i2", 0)]
    behaviours = found.logs.events.filter("behaviour")
    assert len(behaviours) == 2 + len(clicks)  # a click is a behaviour whatever it is worth


def test_of_several_answers_under_one_request_id_each_impression_finds_its_own(
    live: Live, tmp_path: Path
) -> None:
    """The last one before it that has the item, by what it looked at."""
    live.score("r", "u0", ["i1", "i2"], MORNING, context={"hour": "1"})
    live.event("u0", "i1", "impression", MORNING + 1, "r")
    live.event("u0", "i3", "click", MORNING + 2)
    live.score("r", "u0", ["i1", "i3"], MORNING + 3, context={"hour": "2"})
    for item in ("i2", "i3", "i1"):
        live.event("u0", item, "impression", MORNING + 4, "r")
    live.score("r", "u0", ["i2"], MORNING + 5, context={"hour": "3"})
    live.event("u0", "i2", "click", MORNING + 6, "r")
    found = joined(live, tmp_path)
    assert found.tally.left_out == {"shown before under this request id": 1}
    rows = {row["item_id"]: row for row in shown(found.logs)}
    assert {item: (row["hour"], row["ctr"]) for item, row in rows.items()} == {
        "i1": ("1", 0),
        "i2": ("1", 1),
        "i3": ("2", 0),
    }
    assert rows["i3"]["seen_length"] == rows["i1"]["seen_length"] + 1


def test_a_late_click_counts_in_the_next_run(live: Live, tmp_path: Path) -> None:
    """Until then its impression is counted as one that may still turn; with a longer time to settle
    it is left out."""
    live.score("r", "u0", ["i1"], MORNING + 86_390)
    live.event("u0", "i1", "impression", MORNING + 86_391, "r")
    live.event("u1", "i5", "impression", MORNING + 86_399)
    collected = collect(tmp_path / "logs", live.entries)
    early = join(collected, DAY, DAY, Rules(settle_seconds=8))
    note = "negative so far: their window is not over"
    assert [row["ctr"] for row in shown(early.logs)] == [0]
    assert early.tally.notes[note] == 1
    waiting = join(collected, DAY, DAY, Rules(settle_seconds=9))
    assert (waiting.tally.kept, waiting.tally.left_out["too new"]) == (0, 1)
    live.event("u0", "i1", "click", MORNING + 86_391 + 86_400, "r")
    live.event("u0", "i1", "click", LATER)
    late = join(collect(tmp_path / "logs", live.entries), DAY, DAY, Rules(settle_seconds=9))
    assert [row["ctr"] for row in shown(late.logs)] == [1]
    assert late.tally.notes[note] == 0
    assert (late.tally.outcomes, late.tally.vain) == (0, {})  # its day was not asked for
    assert late.logs.events["behaviour"].sum() == 2  # nor is it a behaviour of before then


def test_what_was_really_shown_goes_before_what_was_asked(live: Live, tmp_path: Path) -> None:
    """Fields of the impression, else of its candidate, else of the request."""
    columns = {"price": [1.5, None, 0.5], "genre": [["drama"], None, ["noir"]]}
    live.score("r", "u0", ["i1", "i2", "new"], MORNING, context={"hour": 3}, columns=columns)
    live.event("u0", "i1", "impression", MORNING + 1, "r", hour=4, price=2.5)
    live.event("u0", "i2", "impression", MORNING + 2, "r", position="top")
    live.event("u0", "new", "impression", MORNING + 3, "r")
    logs = joined(live, tmp_path).logs
    fields = [(row["hour"], row["price"]) for row in shown(logs)]
    assert fields == [("4", 2.5), ("3", None), ("3", 0.5)]
    items = {row["item_id"]: row["genre"] for row in logs.items.to_dicts()}
    assert items["i1"] == ["comedy"]  # what is known of an item is not changed by one request
    assert items["new"] == ["noir"]


def test_the_newest_profile_stands_for_the_user(live: Live, tmp_path: Path) -> None:
    """Users of before keep theirs; impressions scored with another one are counted."""
    for step, gender in enumerate(["F", "M"]):
        live.score(f"r{step}", "u0", ["i1"], MORNING + step, profile={"gender": gender})
        live.event("u0", "i1", "impression", MORNING + step, f"r{step}")
    live.event("fresh", "i1", "click", MORNING)
    found = joined(live, tmp_path)
    users = {row["user_id"]: (row["gender"], row["income"]) for row in found.logs.users.to_dicts()}
    assert users == {"u0": ("M", None), "u9": ("M", None), "fresh": (None, None)}
    assert found.tally.notes["of another profile than the user's newest, which stands in"] == 1


def test_a_profile_from_after_these_days_is_not_seen(live: Live, tmp_path: Path) -> None:
    """A score of the next day changes neither the data nor its digest; one on the last day of them
    does."""
    live.score("r", "u0", ["i1"], MORNING, profile={"gender": "F"})
    live.event("u0", "i1", "impression", MORNING, "r")
    before = joined(live, tmp_path).logs
    live.score("later", "u0", ["i1"], MORNING + 86_400, profile={"gender": "M", "income": 99.0})
    after = joined(live, tmp_path).logs
    assert after.users.equals(before.users)
    assert digest(after) == digest(before)
    assert before.users.filter(user_id="u0")["gender"].item() == "F"
    live.score("that evening", "u0", ["i1"], MORNING + 86_399, profile={"gender": "X"})
    changed = joined(live, tmp_path).logs
    assert changed.users.filter(user_id="u0")["gender"].item() == "X"
    assert digest(changed) != digest(before)


def test_nothing_is_left_of_a_user_who_was_erased(live: Live, tmp_path: Path) -> None:
    """Nor of what stood before the loop; what comes after the erasure counts."""
    live.score("r", "u0", ["i1"], MORNING)
    live.event("u0", "i1", "impression", MORNING, "r")
    live.entries.append(Erased("u0", (MORNING + 1) * 1000))
    live.event("u0", "i7", "click", MORNING + 2)
    found = joined(live, tmp_path)
    assert found.logs.events.select("user_id", "item_id").rows() == [("u0", "i7")]
    users = found.logs.users.filter(pl.col("user_id") == "u0")
    assert users.rows() == [("u0", None, None)]


def test_a_history_that_reaches_the_impression_is_cut_there(live: Live, tmp_path: Path) -> None:
    """A click at the impression's own time is never seen, though its score had seen it."""
    live.event("u0", "i5", "click", MORNING + 9)
    live.score("r", "u0", ["i1"], MORNING + 9)
    live.event("u0", "i1", "impression", MORNING + 9, "r")
    found = joined(live, tmp_path)
    assert found.tally.notes["whose history reached their own time: cut there"] == 1
    [dataset] = [each for each in build(found.logs, live.bundle.encoder).values() if len(each)]
    batch, _ = dataset.batch(np.array([0]), np.array([1]))
    assert batch.stop - batch.start == 2  # those of before
    assert batch.history.shape[1] == 2


def test_a_history_that_the_caller_gave_is_not_taken_for_the_stored_one(
    live: Live, tmp_path: Path
) -> None:
    """Its impression sees what the log has from before it, and is counted."""
    live.score("r", "u0", ["i1"], MORNING, history=[{"item_id": "i8", "ts": MORNING - 1}])
    live.event("u0", "i1", "impression", MORNING + 1, "r")
    found = joined(live, tmp_path)
    [row] = shown(found.logs)
    assert (row["seen_length"], row["seen_newest"]) == (None, None)
    assert found.tally.notes["whose history the caller gave: the logged one stands in"] == 1


@pytest.mark.parametrize(("base", "used"), [("none", 0), ("window", 0), ("all", 1)])
def test_impressions_of_the_prepared_logs_are_used_as_asked(
    live: Live, tmp_path: Path, base: Any, used: int
) -> None:
    """By default those of the days asked for; their behaviours are always there."""
    found = joined(live, tmp_path, Rules(base=base))
    assert len(shown(found.logs)) == used
    assert found.tally.notes["used too, from the prepared logs"] == used
    assert found.logs.events["behaviour"].sum() == 2
    day_before = date(2023, 11, 14)
    inside = join(Collected(tmp_path / "logs"), day_before, DAY, Rules(base=base))
    assert len(shown(inside.logs)) == (base != "none")


def test_impressions_are_divided_by_time(live: Live, tmp_path: Path) -> None:
    """The newest are the test set; equal times stay together."""
    items = [f"i{n}" for n in range(20)]
    live.score("r", "u0", items, MORNING)
    for at, item in enumerate(items):
        live.event("u0", item, "impression", MORNING + at - at % 2, "r")
    logs = joined(live, tmp_path, Rules(validation=0.2, test=0.1)).logs
    found = logs.events["split"].drop_nulls().to_list()
    assert found == ["train"] * 14 + ["validation"] * 4 + ["test"] * 2
    logs = joined(live, tmp_path, Rules(validation=0.15, test=0)).logs
    assert logs.events["split"].drop_nulls().to_list() == ["train"] * 16 + ["validation"] * 4


def test_logs_of_another_schema_train_together_with_new_ones(live: Live, tmp_path: Path) -> None:
    """A field that came is missing in the old ones; one that went, or whose values no longer fit,
    is passed over; every impression is in the dataset."""
    live.score(
        "old", "u0", ["i1", "i2"], MORNING, context={"hour": 3}, columns={"price": [1.5, 2.5]}
    )
    live.event("u0", "i1", "impression", MORNING + 1, "old", place=2.5)
    live.event("u0", "i1", "click", MORNING + 2, "old", rating="4")
    live.event("u0", "i1", "impression", MORNING + 3, "new", place="top")
    live.event("u0", "i3", "click", MORNING + 4, dwell=2.5, rating="5")
    new = live.score("new", "u0", ["i1"], MORNING + 3)
    live.entries[-1] = replace(new, context={"place": "side", "hour": 3})
    text = TOY.replace('[[context]]\nname = "hour"', '[[context]]\nname = "place"')
    text = text.replace('[[behaviour]]\nname = "rating"', '[[behaviour]]\nname = "dwell"')
    text = text.replace('name = "price"\n', 'name = "cost"\n')
    text = text.replace("[[context]]", '[[behaviour]]\nname = "seconds"\n[[context]]')
    text = text.replace(
        '[[behaviour]]\nname = "dwell"',
        '[[behaviour]]\nname = "dwell"\nkind = "number"\nboundaries = [1.0]',
    )
    schema = tmp_path / "new.toml"
    schema.write_text(text)
    collected = collect(tmp_path / "logs", live.entries)
    logs = to_logs(collected, DAY, DAY, Rules(settle_seconds=0), schema)
    assert logs.schema == Schema.load(schema)
    assert [row["place"] for row in shown(logs)] == [None, "top"]
    dwell = logs.events.filter("behaviour").sort("ts")["dwell"].to_list()
    assert dwell == [None, None, None, 2.5]
    sets = build(logs, learn_encoder(logs))
    assert sum(map(len, sets.values())) == 2


def test_a_schema_in_another_unit_of_time_is_refused(tmp_path: Path) -> None:
    """Its times would be taken for those of the logs."""
    (tmp_path / "logs" / "base").mkdir(parents=True)
    (tmp_path / "logs" / "base" / "schema.toml").write_text(TOY)
    schema = tmp_path / "toy.toml"
    schema.write_text('ts_unit = "ms"\n' + TOY)
    with pytest.raises(LogsError, match='ts_unit: expected "s", which the logs are in'):
        join(Collected(tmp_path / "logs"), DAY, DAY, schema=schema)


def test_days_without_anything_give_logs_without_impressions(tmp_path: Path) -> None:
    """Not even prepared logs are needed."""
    schema = tmp_path / "toy.toml"
    schema.write_text(TOY)
    found = join(Collected(tmp_path), DAY, DAY, schema=schema)
    assert (len(found.logs.events), found.tally.kept) == (0, 0)


@pytest.mark.parametrize(
    ("length", "newest", "column"),
    [
        ([-1, None], [None, None], "seen_length"),
        ([None, 1], [None, 5], "seen_length"),  # of what is no impression
        ([0, None], [5, None], "seen_newest"),
        ([2, None], [None, None], "seen_newest"),
        (None, [None, None], "seen_length"),
    ],
)
def test_what_an_impression_saw_is_checked(
    tmp_path: Path, length: list[int | None] | None, newest: list[int | None], column: str
) -> None:
    """The canonical form holds both columns or none, and times only where something was seen."""
    logs = base_logs(tmp_path, TOY)
    shown = logs.events.filter(pl.col("split").is_not_null())
    events = pl.concat([shown, logs.events.filter("behaviour").head(1)])
    given = {"seen_length": length, "seen_newest": newest}
    columns = [pl.Series(n, v, pl.Int64) for n, v in given.items() if v is not None]
    ordered = events.with_columns(columns).sort("user_id", "ts", maintain_order=True)
    with pytest.raises(LogsError) as found:
        replace(logs, events=ordered).check()
    assert found.value.column == column


def test_the_command_writes_logs_that_fit_reads_and_shows_what_was_left_out(
    live: Live, tmp_path: Path
) -> None:
    """With the histories that scores looked at; days in the wrong order are refused."""
    live.score("r", "u0", ["i1"], MORNING)
    live.event("u0", "i1", "impression", MORNING + 1, "r")
    live.event("u0", "i2", "impression", MORNING + 1)
    joined(live, tmp_path)
    out = tmp_path / "out"
    command = ["join", "--logs", str(tmp_path / "logs"), "--out", str(out)]
    done = CliRunner().invoke(app, [*command, "--first", "2023-11-15", "--last", "2023-11-15"])
    assert done.exit_code == 0, done.output
    assert "left out: no request id" in done.stderr
    [row] = shown(Logs.read(out))
    assert (row["seen_length"], row["seen_newest"]) == (2, MORNING - 90)
    wrong = CliRunner().invoke(app, [*command, "--first", "2023-11-16", "--last", "2023-11-15"])
    assert wrong.exit_code == 2

"""Taobao's UserBehavior.csv."""

from __future__ import annotations

import zipfile
from functools import partial
from pathlib import Path

import polars as pl
import pytest

from tests.training.prepared import read_chunks
from tests.training.readers import files
from tests.training.spilled import in_groups
from training.logs import LogsError
from training.readers import taobao

FIRST = taobao.BEGIN
read_taobao = partial(read_chunks, taobao.read_taobao)
OTHERS = [f"9,{item},3,buy,{FIRST + item}" for item in range(100, 110)]  # no pv: never shown


def test_the_last_view_is_the_impression_beside_an_unseen_item(tmp_path: Path) -> None:
    """Whatever came before it is its history; what came after it is a behaviour only."""
    lines = (
        f"1,12,7,fav,{FIRST + 30}",
        f"1,10,7,pv,{FIRST + 10}",
        f"1,11,8,cart,{FIRST + 20}",
        f"1,13,8,pv,{FIRST + 25}",
    )
    logs = read_taobao(files.taobao(tmp_path, *lines, *OTHERS), partial=True)
    events = logs.events.filter(pl.col("user_id") == "1")
    assert events.filter("behaviour").select("item_id", "action", "ctr").rows() == [
        ("10", "pv", None),
        ("11", "cart", None),
        ("13", "pv", 1),
        ("12", "fav", None),
    ]
    negative = events.filter(~pl.col("behaviour"))
    assert negative.select("ts", "ctr", "action").rows() == [(FIRST + 25, 0, None)]
    assert negative["item_id"][0] in {str(item) for item in range(100, 110)}
    assert logs.items.filter(pl.col("item_id") == "11")["category"].to_list() == ["8"]


def test_events_outside_the_nine_days_are_left_out_and_counted(tmp_path: Path) -> None:
    """The first second belongs to them and the last one too; such rows are not malformed."""
    times = (taobao.BEGIN - 1, taobao.BEGIN, taobao.END - 1, taobao.END, -5)
    lines = [f"1,{at},7,pv,{ts}" for at, ts in enumerate(times)]
    logs = read_taobao(files.taobao(tmp_path, *lines, *OTHERS), partial=True)
    assert logs.events.filter(pl.col("user_id") == "1", "behaviour")["item_id"].to_list() == list(
        "12"
    )
    assert logs.left_out["events outside 2017-11-25 to 2017-12-03"] == 3
    assert logs.malformed.count == 0
    with pytest.raises(LogsError, match="expected events of 2017-11-25 to 2017-12-03, found none"):
        read_taobao(files.taobao(tmp_path, "1,1,1,pv,5"), partial=True)


def test_users_with_nothing_before_their_last_view_are_counted(tmp_path: Path) -> None:
    """One event, events of one second, or no view at all: behaviours without an impression."""
    lines = [f"1,10,7,pv,{FIRST}", f"2,10,7,pv,{FIRST}", f"2,11,7,pv,{FIRST}"]
    logs = read_taobao(files.taobao(tmp_path, *lines, *OTHERS), partial=True)
    assert logs.events["split"].null_count() == logs.events.height
    assert [count for why, count in logs.left_out.items() if "without a pv" in why] == [3]


def test_a_tenth_of_the_users_is_test_and_validation_each(tmp_path: Path) -> None:
    """Both rows of a user are in one split, and the draw does not depend on the other users."""

    def splits(users: int) -> dict[str, str]:
        lines = [f"{u},{u + at},1,pv,{FIRST + at}" for u in range(1, users) for at in range(2)]
        events = read_taobao(files.taobao(tmp_path, *lines), partial=True).events
        return dict(events.drop_nulls("split").select("user_id", "split").unique().iter_rows())

    few, many = splits(300), splits(3000)
    assert few.items() <= many.items()
    share = [list(many.values()).count(name) / 2999 for name in ("test", "validation")]
    assert share == pytest.approx([0.1, 0.09], abs=0.03)


def test_a_folder_a_zip_and_the_file_are_the_same(tmp_path: Path) -> None:
    """The zip is the owners' download."""
    path = files.taobao(tmp_path, f"1,10,7,pv,{FIRST}", f"1,11,7,pv,{FIRST + 1}", *OTHERS)
    one = read_taobao(path, partial=True)
    assert read_taobao(tmp_path, partial=True).events.equals(one.events)
    with zipfile.ZipFile(tmp_path / "UserBehavior.csv.zip", "w") as archive:
        archive.write(path, "UserBehavior.csv")
    assert read_taobao(tmp_path / "UserBehavior.csv.zip", partial=True).events.equals(one.events)
    path.unlink()
    assert read_taobao(tmp_path, partial=True).events.equals(one.events)


def test_another_size_than_the_published_is_an_error_unless_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows, users, items and categories, those outside the nine days included."""
    path = files.taobao(tmp_path, "1,10,7,pv,5", *OTHERS)
    with pytest.raises(LogsError, match="rows: expected the published 100,150,807, found 11"):
        read_taobao(path)
    found = {"rows": 11, "users": 2, "items": 11, "categories": 2}
    monkeypatch.setattr(taobao, "PUBLISHED", found)
    assert read_taobao(path).users.height == 1
    monkeypatch.setattr(taobao, "PUBLISHED", {**found, "categories": 1})
    with pytest.raises(LogsError, match="categories: expected the published 1, found 2"):
        read_taobao(path)


def test_malformed_lines_have_their_number_from_the_first(tmp_path: Path) -> None:
    """There is no header: one is a malformed line."""
    lines = ["user,item,category,behaviour,ts", "1,2,3,look,5", "1,2,3,pv,x", "01,2,3,pv,5"]
    lines += ["1,2,3,pv", "1,2,1234567890,pv,5", *OTHERS]
    logs = read_taobao(files.taobao(tmp_path, *lines), partial=True, max_bad_share=0.9)
    assert [(line, reason) for _, line, reason in logs.malformed.bad] == [
        (1, "user is not a whole number of at most 9 digits"),
        (2, "action is not pv, buy, cart or fav"),
        (3, "the timestamp is not an integer"),
        (4, "user is not a whole number of at most 9 digits"),
        (5, "the number of fields is not 5"),
        (6, "category is not a whole number of at most 9 digits"),
    ]


def test_a_file_of_another_layout_ends_with_its_first_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no line of the first part is sound, the rest is not read."""
    monkeypatch.setattr("training.parts.SLICE", 1000)
    path = files.taobao(tmp_path, *("1;2;3;pv;5" for _ in range(10_000)))
    told: list[int] = []
    with pytest.raises(LogsError, match=r"line 1: the number of fields is not 5"):
        read_taobao(
            path, partial=True, update=lambda stage, done, total, figures: told.append(done)
        )
    assert sum(told) == 0


def test_groups_of_users_are_the_same_logs_as_all_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the items that are drawn for each group; one of them at a time is in memory."""
    lines = [
        f"{user},{user * at % 90},{at % 4},{taobao.ACTIONS[user * at % 4]},{FIRST - 2 + at * 3 % 7}"
        for at in range(9)
        for user in range(1, 250)
    ]
    path = files.taobao(tmp_path, *lines)
    one = read_taobao(path, partial=True)
    found = in_groups(monkeypatch, run=2000, group=2000)
    many = read_taobao(path, partial=True)
    assert len(found) > 9
    drawn = pl.when("behaviour").then("item_id").alias("item_id")
    assert many.events.with_columns(drawn).equals(one.events.with_columns(drawn))
    assert (many.items.equals(one.items), many.users.equals(one.users)) == (True, True)
    assert (many.left_out, many.malformed) == (one.left_out, one.malformed)
    assert min(many.left_out.values()) > 0
    has = many.events.filter("behaviour").select("user_id", "item_id")
    negatives = many.events.filter(~pl.col("behaviour"))
    assert negatives.join(has, on=["user_id", "item_id"]).is_empty()


def test_an_item_has_the_category_of_its_first_event_within_the_nine_days(tmp_path: Path) -> None:
    """First in the file; what is left out says nothing of it."""
    lines = ("5,10,1,pv,5", f"5,10,2,pv,{FIRST + 9}", f"1,10,3,pv,{FIRST}")
    logs = read_taobao(files.taobao(tmp_path, *lines, *OTHERS), partial=True)
    assert logs.items.filter(pl.col("item_id") == "10").rows() == [("10", "2")]

"""Alimama's Ali_Display_Ad_Click."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.prepared import read_chunks
from tests.training.readers import files
from tests.training.readers.files import ALIMAMA_FIRST as FIRST
from tests.training.readers.files import DAY
from tests.training.spilled import in_groups
from training.dataset import build, learn_encoder
from training.logs import LogsError
from training.readers import alimama

read_alimama = partial(read_chunks, alimama.read_alimama)
SHOWN = [
    f"{user},{FIRST + day * DAY + user},{ad},430548_1007,{1 - click},{click}"
    for user, ad, click in ((1, 1, 0), (2, 2, 1))
    for day in range(8)
]
BEFORE = [f"1,{FIRST - 500},pv,6406,95471", f"1,{FIRST - 400},buy,6407,3", f"2,{FIRST},cart,1,2"]


def test_an_ad_and_a_behaviour_share_category_and_brand(tmp_path: Path) -> None:
    """The item of both is category:brand; what only the ad has is an ad field."""
    logs = read_alimama(files.alimama(tmp_path, SHOWN, BEFORE), partial=True)
    one = logs.events.filter(pl.col("user_id") == "1")
    assert one.filter("behaviour").select("item_id", "btag", "adgroup_id").rows() == [
        ("6406:95471", "pv", None),
        ("6407:3", "buy", None),
    ]
    shown = one.filter(~pl.col("behaviour")).drop("split", "ts").unique()
    assert shown.drop("user_id", "behaviour").to_dicts() == [
        {
            "item_id": "6406:95471",
            "ctr": 0,
            "btag": None,
            "adgroup_id": "1",
            "campaign_id": "83237",
            "customer": "11",
            "price": 170.0,
            "pid": "430548_1007",
        }
    ]
    assert logs.items.sort("item_id").rows() == [
        ("1:2", "1", "2"),
        ("6406:95471", "6406", "95471"),
        ("6407:", "6407", None),
        ("6407:3", "6407", "3"),
    ]


def test_seven_days_train_and_the_eighth_is_test(tmp_path: Path) -> None:
    """Days begin at midnight in China; a tenth of the users of the first seven is validation."""
    edge = FIRST + 7 * DAY
    lines = [f"{u},{edge - 1 + u % 2},1,430548_1007,1,0" for u in range(1, 2001)]
    events = read_alimama(files.alimama(tmp_path, lines, BEFORE), partial=True).events
    shown = events.drop_nulls("split")
    late = pl.col("ts") >= edge
    assert set(shown.filter(late)["split"]) == {"test"}
    early = shown.filter(~late)["split"]
    assert set(early) == {"train", "validation"}
    assert (early == "validation").mean() == pytest.approx(0.1, abs=0.03)


def test_profiles_lose_their_blanks_and_the_space_in_the_header(tmp_path: Path) -> None:
    """An empty level is not known; users without a profile have impressions all the same."""
    shown = [*SHOWN, f"3,{FIRST},1,430548_1007,1,0"]
    logs = read_alimama(files.alimama(tmp_path, shown, BEFORE), partial=True)
    assert logs.users.select("user_id", "pvalue_level", "new_user_class_level").rows() == [
        ("1", None, "3"),
        ("2", "2", None),
    ]
    assert "3" in logs.events["user_id"]


def test_what_has_no_use_is_left_out_and_counted(tmp_path: Path) -> None:
    """Users never shown anything, times outside the log, behaviours too late, ads not described."""
    behaviours = [
        *BEFORE,
        f"77,{FIRST},pv,1,1",
        "1,5,pv,1,1",
        f"1,{FIRST + 8 * DAY - 1},pv,1,1",
        f"1,{FIRST + 8 * DAY},pv,1,1",
    ]
    shown = [*SHOWN, f"1,{FIRST},999,430548_1007,1,0"]
    logs = read_alimama(files.alimama(tmp_path, shown, behaviours), partial=True)
    assert logs.left_out == {
        "behaviours outside 2017-04-22 to 2017-05-13": 2,
        "behaviours of users without impressions": 1,
        "behaviours that no impression sees": 1,
        "impressions of ads without a row in ad_feature": 1,
    }
    assert logs.events["behaviour"].sum() == 3


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 60)), max_size=80),
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 60)), min_size=1, max_size=8),
    st.integers(1, 4),
)
def test_no_impression_loses_a_behaviour_that_it_sees(
    behaviours: list[tuple[int, int]], shown: list[tuple[int, int]], length: int
) -> None:
    """What is kept is what the last ``length`` before some impression are, and nothing else."""
    schema = {"user": pl.Int32, "ts": pl.Int64}
    log = pl.DataFrame(behaviours, schema, orient="row").with_row_index("at")
    impressions = pl.DataFrame(shown, schema, orient="row")
    wanted = set()
    for user, ts in shown:
        before = [(t, at) for at, (u, t) in enumerate(behaviours) if u == user and t < ts]
        wanted |= {at for _, at in sorted(before)[-length:]}
    assert set(alimama._seen(log, impressions, length)["at"]) == wanted


def test_the_logs_become_a_dataset_with_shared_tables(tmp_path: Path) -> None:
    """An ad of the category and brand of a behaviour has that behaviour's rows."""
    logs = read_alimama(files.alimama(tmp_path, SHOWN, BEFORE), partial=True)
    sets = build(logs, learn_encoder(logs))
    test = sets["test"]
    width = logs.schema.width("item")
    history = test.behaviours[test.start[0] : test.stop[0], :width].tolist()
    assert len(history) == 2
    assert test.item[0].tolist() == history[0] != history[1]


def test_compressed_files_are_read_as_the_plain_ones(tmp_path: Path) -> None:
    """The owners' download is one .tar.gz per file; .gz will do, and two of one are refused."""
    plain = read_alimama(files.alimama(tmp_path, SHOWN, BEFORE), partial=True)
    for name in ("raw_sample.csv", "behavior_log.csv"):
        lines = (tmp_path / name).read_text().splitlines()
        files.tarred(tmp_path / f"{name}.tar.gz", name, *lines)
        (tmp_path / name).unlink()
    lines = (tmp_path / "ad_feature.csv").read_text().splitlines()
    files.gzipped(tmp_path / "ad_feature.csv.gz", *lines)
    with pytest.raises(LogsError, match=r"one file of .*, found ad_feature\.csv, ad_feature\.csv"):
        read_alimama(tmp_path, partial=True)
    (tmp_path / "ad_feature.csv").unlink()
    assert read_alimama(tmp_path, partial=True).events.equals(plain.events)
    files.tarred(tmp_path / "raw_sample.csv.tar.gz", "other.csv", "x")
    with pytest.raises(LogsError, match=r"tar\.gz: raw_sample\.csv: expected a member of this"):
        read_alimama(tmp_path, partial=True)


def test_another_header_than_the_official_is_refused_with_both(tmp_path: Path) -> None:
    """The error names the file, the line, what was expected and what was found."""
    files.alimama(tmp_path, SHOWN, BEFORE)
    (tmp_path / "behavior_log.csv").write_text("nick,time_stamp,btag,cate,brand\n1,2,pv,3,4\n")
    expected = r"behavior_log\.csv: line 1: expected the header user,time_stamp,btag,cate,brand"
    with pytest.raises(LogsError, match=expected + ", found 'nick,"):
        read_alimama(tmp_path, partial=True)
    (tmp_path / "behavior_log.csv").write_text("")
    with pytest.raises(LogsError, match=r"behavior_log\.csv: header"):
        read_alimama(tmp_path, partial=True)


def test_malformed_rows_of_each_file_have_their_line(tmp_path: Path) -> None:
    """The header is line 1."""
    shown = [
        f"x,{FIRST},1,430548_1007,1,0",
        f"1,{FIRST - 1},1,430548_1007,1,0",
        f"1,{FIRST},1,430548_1007,1,1",
        f"1,{FIRST},1,430548_1007,2,0",
        *SHOWN,
    ]
    ads = ["1,6406,83237,11,95471,170.0", "1,1,1,1,1,1.0", "2,1,1,1,none,1.0", "3,1,1,1,1,-1.0"]
    ads += ["4,zero,1,1,1,1.0", "4,1,zero,1,1,1.0", "4,1,1,zero,1,1.0"]
    people = ["1,0,5,2,5,,3,0,3", "1,0,5,2,5,,3,0,3", "2,zero,5,2,5,,3,0,3", "2,0,5,2,5,,3,0,3.0"]
    behaviours = [*BEFORE, "1,x,pv,1,1", "1,1493000000,look,1,1", "1,1493000000,pv,,1"]
    folder = files.alimama(tmp_path, shown, behaviours, ads, people)
    logs = read_alimama(folder, partial=True, max_bad_share=0.9)
    found = [(Path(file).name, line, reason) for file, line, reason in logs.malformed.bad]
    digits = "is not a whole number of at most 9 digits"
    assert found == [
        ("raw_sample.csv", 2, f"user {digits}"),
        ("raw_sample.csv", 3, "time_stamp is not within 2017-05-06 to 2017-05-13"),
        ("raw_sample.csv", 4, "clk and nonclk are the same"),
        ("raw_sample.csv", 5, "nonclk is not 0 or 1"),
        ("ad_feature.csv", 3, "adgroup_id again"),
        ("ad_feature.csv", 4, f"brand {digits}"),
        ("ad_feature.csv", 5, "price is not a number from 0"),
        ("ad_feature.csv", 6, f"cate_id {digits}"),
        ("ad_feature.csv", 7, f"campaign_id {digits}"),
        ("ad_feature.csv", 8, f"customer {digits}"),
        ("user_profile.csv", 3, "userid again"),
        ("user_profile.csv", 4, f"cms_segid {digits}"),
        ("user_profile.csv", 5, f"new_user_class_level {digits}"),
        ("behavior_log.csv", 5, "time_stamp is not an integer"),
        ("behavior_log.csv", 6, "btag is not pv, cart, fav or buy"),
        ("behavior_log.csv", 7, f"cate {digits}"),
    ]


def test_another_size_than_the_published_is_an_error_unless_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Impressions, ads and profiles are held to it before the log of behaviours is read."""
    folder = files.alimama(tmp_path, SHOWN, BEFORE)
    (folder / "behavior_log.csv").write_text("not the log\n")
    with pytest.raises(LogsError, match="impressions: expected the published 26,557,961, found 16"):
        read_alimama(folder)
    files.alimama(tmp_path, SHOWN, BEFORE)
    found = {"impressions": 16, "ads": 2, "users with a profile": 2}
    monkeypatch.setattr(alimama, "PUBLISHED", found)
    assert read_alimama(folder).users.height == 2
    monkeypatch.setattr(alimama, "PUBLISHED", {**found, "ads": 3})
    with pytest.raises(LogsError, match="ads: expected the published 3, found 2"):
        read_alimama(folder)


def test_groups_of_users_are_the_same_logs_as_all_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Users that only have a profile are among them; one group at a time is in memory."""
    shown = [
        f"{user},{FIRST + user % 9 * DAY},{1 + at},430548_1007,{at % 2},{1 - at % 2}"
        for at in range(3)
        for user in range(1, 300)
        if user % 9 < 8
    ]
    behaviours = [
        f"{user},{FIRST - at * DAY // 4},pv,{user * at % 70},{at}"
        for at in range(60)
        for user in range(1, 300, 2)
    ]
    people = [f"{user},0,5,2,5,,3,0,3" for user in range(400, 1, -1)]
    folder = files.alimama(tmp_path, shown, behaviours, people=people)
    one = read_alimama(folder, partial=True)
    found = in_groups(monkeypatch, run=5000, group=5000)
    many = read_alimama(folder, partial=True)
    assert len(found) > 18  # in two passes
    assert many.events.equals(one.events)
    assert (many.items.equals(one.items), many.users.equals(one.users)) == (True, True)
    assert (many.left_out, many.malformed) == (one.left_out, one.malformed)
    assert len(one.left_out) == 4
    assert one.users.height == 399

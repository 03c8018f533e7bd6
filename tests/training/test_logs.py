"""The canonical form and the readers into it."""

from __future__ import annotations

import gzip
import zipfile
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path

import polars as pl
import pytest

from model.contract.schema import SchemaError
from tests.training.prepared import read_tables
from training import parts
from training.engines import start
from training.logs import Logs, LogsError
from training.option import OptionError
from training.readers import read_amazon, read_movielens
from training.tables import prepare

DATA = Path(__file__).resolve().parents[2].parent / "shared/data"
BIG = 2**53 + 1
DIGITS = "is not a whole number of at most 9 digits"

SCHEMA = """# Our own.
name = "own"
history_length = 20
[[task]]
name = "click"
[[item]]
name = "item_id"
[[item]]
name = "brand"
[[item]]
name = "colours"
kind = "tags"
max_values = 3
[[ad]]
name = "price"
kind = "number"
boundaries = [1.0, 2.0]
[[context]]
name = "hour"
"""


@pytest.fixture
def data() -> Path:
    if not DATA.is_dir():
        pytest.skip(f"no real data in {DATA}")
    return DATA


def movielens(folder: Path, ratings: list[str], users: int = 40) -> Path:
    people = [f"{user}::F::25::{user % 20}::48067" for user in range(1, users + 1)]
    movies = [
        "1::Toy Story (1995)::Animation|Children's|Comedy",
        "2::Caf\u00e9 Fran\u00e7ais (1996)::Drama",
        "3::No genre (1999)::",
    ]
    path = folder / "ml-1m.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, lines in (("ratings", ratings), ("movies", movies), ("users", people)):
            archive.writestr(f"ml-1m/{name}.dat", "".join(f"{x}\n" for x in lines).encode("latin1"))
    return path


def ratings_of(users: int) -> list[str]:
    """Each user rates film 2 (5 stars) before film 1 (3 stars), listed the other way round."""
    rows = ((f"{u}::1::3::{u + 100}", f"{u}::2::5::{u + 50}") for u in range(1, users + 1))
    return [line for pair in rows for line in pair]


def write_csv(path: Path, *lines: str) -> None:
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))


def amazon(folder: Path, users: int = 30, *more: str) -> Path:
    """Users with the items u, u + 1, .. u + 4 of 60, and item 60 as the test's negative."""
    events = [f"{u},{u + step},{step}" for u in range(1, users + 1) for step in range(5)]
    items = [f"{item},{item % 7}" for item in range(1, 61)]
    tests = [f"{u},{u + 4},60" for u in range(1, users + 1)]
    write_csv(folder / "tiny.events.csv.gz", "user_id,item_id,step", *events, *more)
    write_csv(folder / "tiny.items.csv.gz", "item_id,category_id", *items)
    write_csv(folder / "tiny.test.csv.gz", "user_id,positive_item_id,negative_item_id", *tests)
    return folder / "tiny"


def own(folder: Path, events: pl.DataFrame | str, items: str | None = None) -> Path:
    """Tables of a team's own beside their schema, whose path is returned."""
    if isinstance(events, str):
        (folder / "events.csv").write_text(events, encoding="utf-8")
    else:
        events.write_parquet(folder / "events.parquet")
    items = items or "item_id,brand,colours\n7,ACME,red|blue\n8,,\n"
    (folder / "items.csv").write_text(items, encoding="utf-8")
    schema = folder / "own.toml"
    schema.write_text(SCHEMA, encoding="utf-8")
    return schema


def own_events(rows: int = 20) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "user_id": [BIG + row % 3 for row in range(rows)],
            "item_id": [7 + row % 2 for row in range(rows)],
            "ts": list(range(rows)),
            "click": [row % 2 for row in range(rows)],
            "price": [1.5 + row for row in range(rows)],
            "hour": [row % 24 for row in range(rows)],
        }
    )


# MovieLens


def test_a_rating_is_a_behaviour_and_an_impression_liked_from_four_stars(tmp_path: Path) -> None:
    """Ratings 4 and 5 have label 1, and every rating enters the history with its stars."""
    ratings = [f"1::2::{stars}::{stars}" for stars in range(1, 6)]
    events = read_movielens(movielens(tmp_path, ratings)).events
    assert events["rating"].to_list() == ["1", "2", "3", "4", "5"]
    assert events["ctr"].to_list() == [0, 0, 0, 1, 1]
    assert events["behaviour"].all()
    assert events["split"].null_count() == 0


def test_events_come_sorted_by_user_and_time_with_ties_in_file_order(tmp_path: Path) -> None:
    """The file's order matters only between a user's equal times."""
    ratings = ["2::1::1::9", "1::1::3::7", "1::2::4::5", "1::3::5::7"]
    events = read_movielens(movielens(tmp_path, ratings)).events
    assert events.select("user_id", "item_id", "ts").rows() == [
        ("1", "2", 5),
        ("1", "1", 7),
        ("1", "3", 7),
        ("2", "1", 9),
    ]


def test_films_have_their_genres_and_users_their_profile(tmp_path: Path) -> None:
    """Genres are tags, none for a film without; a title in latin-1 does no harm."""
    logs = read_movielens(movielens(tmp_path, ratings_of(3), users=3))
    genres = [["Animation", "Children's", "Comedy"], ["Drama"], []]
    assert logs.items.rows() == list(zip("123", genres, strict=True))
    assert logs.users.rows()[1] == ("2", "F", "25", "2")


def test_the_listed_users_are_the_test_set(tmp_path: Path) -> None:
    """All rows of a listed user are test, and no row of another user is."""
    listed = tmp_path / "test.txt"
    listed.write_text("3\n17\n", encoding="utf-8")
    events = read_movielens(movielens(tmp_path, ratings_of(40)), listed).events
    assert set(events.filter(pl.col("split") == "test")["user_id"]) == {"3", "17"}
    assert events.filter(pl.col("user_id") == "3")["split"].to_list() == ["test", "test"]


def test_a_listed_user_that_does_not_exist_is_an_error_with_its_line(tmp_path: Path) -> None:
    """A wrong list of test users is found before it changes a figure."""
    listed = tmp_path / "test.txt"
    listed.write_text("3\n99999\n", encoding="utf-8")
    with pytest.raises(LogsError, match=r"test\.txt: line 2: .*'99999'"):
        read_movielens(movielens(tmp_path, ratings_of(40)), listed)


def test_without_a_list_a_hash_of_the_user_decides_the_split(tmp_path: Path) -> None:
    """About 28 % test and 10 % of the rest validation; who is where doesn't depend on the rest."""

    def splits(logs: Logs) -> dict[str, str]:
        return dict(logs.events.select("user_id", "split").unique().iter_rows())

    few = splits(read_movielens(movielens(tmp_path, ratings_of(300), users=300)))
    many = splits(read_movielens(movielens(tmp_path, ratings_of(3000), users=3000)))
    assert few.items() <= many.items()
    share = [list(many.values()).count(name) / 3000 for name in ("test", "validation")]
    assert share == pytest.approx([0.278, 0.072], abs=0.03)
    other = splits(read_movielens(movielens(tmp_path, ratings_of(300), users=300), seed=1))
    assert other != few


def test_malformed_ratings_are_dropped_and_listed_with_their_line(tmp_path: Path) -> None:
    """Each kind of broken line has its reason, and the sound lines stay."""
    broken = [
        "1::1::3",
        "1::1::6::5",
        "1::1::x::5",
        "1::1::4::soon",
        "::1::4::5",
        "1::1::4::5::6",
        "1::::4::5",
        "abc::1::4::5",
        "1::1.0::4::5",
    ]
    path = movielens(tmp_path, ["1::1::4::1", *broken, "1::2::5::2"])
    logs = read_movielens(path, max_bad_share=0.9)
    file = f"{path}/ml-1m/ratings.dat"
    assert logs.malformed.bad == (
        (file, 2, "the number of fields is not 4"),
        (file, 3, "rating is not 1 to 5"),
        (file, 4, "rating is not 1 to 5"),
        (file, 5, "ts is not an integer"),
        (file, 6, "empty user_id"),
        (file, 7, "the number of fields is not 4"),
        (file, 8, "empty item_id"),
        (file, 9, f"user_id {DIGITS}"),
        (file, 10, f"item_id {DIGITS}"),
    )
    assert logs.malformed.count == 9
    assert logs.malformed.total_rows == 11 + 3 + 40
    assert logs.events["item_id"].to_list() == ["1", "2"]


def test_malformed_films_and_users_have_their_line(tmp_path: Path) -> None:
    """Ids, ages and occupations are whole numbers, and gender is F or M."""
    path = movielens(tmp_path, ratings_of(3))
    people = ["1::F::25::1::48067", "two::F::25::1::48067", "3::x::25::1::48067"]
    people += ["4::M::young::1::48067", "5::M::25::baker::48067", "6::M::25::1::a-z"]
    with zipfile.ZipFile(path, "w") as archive:
        for name, lines in (
            ("ratings", ratings_of(3)),
            ("movies", ["1::A::Drama", "two::B::Drama", "2::C::Drama"]),
            ("users", people),
        ):
            archive.writestr(f"ml-1m/{name}.dat", "".join(f"{line}\n" for line in lines))
    logs = read_movielens(path, max_bad_share=0.9)
    assert [(Path(file).stem, line, reason) for file, line, reason in logs.malformed.bad] == [
        ("movies", 2, f"item_id {DIGITS}"),
        ("users", 2, f"user_id {DIGITS}"),
        ("users", 3, "gender is not F or M"),
        ("users", 4, f"age {DIGITS}"),
        ("users", 5, f"occupation {DIGITS}"),
    ]
    assert logs.users["user_id"].to_list() == ["1", "6"]


def test_the_job_stops_above_the_share_of_malformed_rows(tmp_path: Path) -> None:
    """One broken row in 1,000 is dropped; two stop the job, and the error lists them."""
    rows = ratings_of(500)
    path = movielens(tmp_path, [*rows[:-1], "broken"], users=500)
    assert read_movielens(path).malformed.count == 1
    path = movielens(tmp_path, ["broken", *rows[:-2], "broken"], users=500)
    with pytest.raises(LogsError, match=r"found 2 of 1000 \(.*line 1: .*line 1000: ") as caught:
        read_movielens(path)
    assert [line for _, line, _ in caught.value.malformed.bad] == [1, 1000]


def test_the_first_twenty_malformed_rows_are_listed_and_all_are_counted(tmp_path: Path) -> None:
    """The list stays short however broken a file is."""
    path = movielens(tmp_path, [*(["1::1"] * 30), *ratings_of(40)])
    malformed = read_movielens(path, max_bad_share=0.5).malformed
    assert [line for _, line, _ in malformed.bad] == list(range(1, 21))
    assert malformed.count == 30


def test_a_zip_that_is_none_or_lacks_a_member_is_an_error_with_its_name(tmp_path: Path) -> None:
    """No traceback of a library reaches the user."""
    path = tmp_path / "ml-1m.zip"
    with pytest.raises(LogsError, match=r"ml-1m\.zip"):
        read_movielens(path)
    path.write_bytes(b"not a zip")
    with pytest.raises(LogsError, match="readable zip"):
        read_movielens(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ml-1m/README", "nothing")
    with pytest.raises(LogsError, match=r"ml-1m/ratings\.dat"):
        read_movielens(path)


# Amazon


def test_each_step_has_its_positive_and_an_unseen_negative_at_the_same_time(
    tmp_path: Path,
) -> None:
    """Steps 1 to n-2 train with pairs that see the same history; the first is history only."""
    logs = read_amazon(amazon(tmp_path), validation_share=0.0)
    events = logs.events.filter(pl.col("user_id") == "5")
    columns = ("ts", "behaviour", "split", "ctr")
    assert events.select(columns).rows() == [
        (0, True, None, None),
        (1, True, "train", 1),
        (1, False, "train", 0),
        (2, True, "train", 1),
        (2, False, "train", 0),
        (3, True, "train", 1),
        (3, False, "train", 0),
        (4, True, "test", 1),
        (4, False, "test", 0),
    ]
    assert events.filter(pl.col("behaviour"))["item_id"].to_list() == ["5", "6", "7", "8", "9"]
    assert events["item_id"][-1] == "60"
    negatives = logs.events.filter((pl.col("ctr") == 0) & (pl.col("split") == "train"))
    seen = {(u, i) for u, i in logs.events.filter("behaviour")["user_id", "item_id"].iter_rows()}
    assert seen.isdisjoint(negatives["user_id", "item_id"].iter_rows())
    assert set(negatives["item_id"]) <= set(logs.items["item_id"])


def test_negatives_are_uniform_over_the_items_a_user_never_has(tmp_path: Path) -> None:
    """Of 7 items a user has 5, so each of the other two is drawn about half of the time."""
    users = range(400)
    write_csv(
        tmp_path / "t.events.csv.gz",
        "user_id,item_id,step",
        *(f"{u},{step},{step}" for u in users for step in range(5)),
    )
    items = (f"{item},a" for item in range(7))
    write_csv(tmp_path / "t.items.csv.gz", "item_id,category_id", *items)
    tests = (f"{u},4,6" for u in users)
    write_csv(tmp_path / "t.test.csv.gz", "user_id,positive_item_id,negative_item_id", *tests)
    events = read_amazon(tmp_path / "t").events
    drawn = events.filter((pl.col("ctr") == 0) & (pl.col("split") != "test"))["item_id"]
    assert set(drawn) == {"5", "6"}
    assert (drawn == "5").mean() == pytest.approx(0.5, abs=0.06)


def test_the_same_seed_draws_the_same_negatives(tmp_path: Path) -> None:
    """Reading twice gives the same logs; another seed gives other negatives."""
    path = amazon(tmp_path)
    first = read_amazon(path, seed=3).events
    assert first.equals(read_amazon(path, seed=3).events)
    assert not first.equals(read_amazon(path, seed=4).events)


def test_validation_is_the_last_training_step_of_a_share_of_the_users(tmp_path: Path) -> None:
    """Only pairs of step n-2, never a test pair, and about the share asked for."""
    logs = read_amazon(amazon(tmp_path), validation_share=0.4)
    validation = logs.events.filter(pl.col("split") == "validation")
    assert set(validation["ts"]) == {3}
    assert validation["ctr"].sum() * 2 == validation.height
    assert 5 <= validation["user_id"].n_unique() <= 20
    everyone = read_amazon(amazon(tmp_path), validation_share=1.0).events
    assert set(everyone.filter(pl.col("ts") == 3)["split"]) == {"validation"}


def test_a_user_without_a_test_pair_keeps_the_last_event_as_behaviour(tmp_path: Path) -> None:
    """No training pair is made of the last step."""
    more = [f"99,{step + 1},{step}" for step in range(4)]
    events = read_amazon(amazon(tmp_path, 30, *more)).events.filter(pl.col("user_id") == "99")
    assert events.filter(pl.col("ts") == 3).select("behaviour", "split").rows() == [(True, None)]


def test_malformed_lines_of_gz_files_have_the_line_of_the_text(tmp_path: Path) -> None:
    """Lines count from the header, for each of the three files."""
    prefix = amazon(tmp_path, 30, "1,2", "1,,9", "1,2,x", "1,2,0", "")
    write_csv(tmp_path / "tiny.items.csv.gz", "item_id,category_id", "1,1", "1,2", "60,", "61,3")
    header = "user_id,positive_item_id,negative_item_id"
    write_csv(tmp_path / "tiny.test.csv.gz", header, "1,5,60", "2,5,60", "77,5,60")
    malformed = read_amazon(prefix, max_bad_share=0.9).malformed
    assert [(Path(file).name, line, reason) for file, line, reason in malformed.bad] == [
        ("tiny.events.csv.gz", 152, "the number of fields is not 3"),
        ("tiny.events.csv.gz", 153, "empty item_id"),
        ("tiny.events.csv.gz", 154, "step is not an integer"),
        ("tiny.events.csv.gz", 155, "user_id and step again"),
        ("tiny.items.csv.gz", 3, "item_id again"),
        ("tiny.items.csv.gz", 4, "empty category_id"),
        ("tiny.test.csv.gz", 3, "positive_item_id is not the last of a user's events"),
        ("tiny.test.csv.gz", 4, "positive_item_id is not the last of a user's events"),
    ]


def test_a_user_with_every_item_stops_the_draw_of_negatives(tmp_path: Path) -> None:
    """There is no unseen item, and the error says so rather than drawing for ever."""
    prefix = amazon(tmp_path, 1)
    items = (f"{item},1" for item in range(1, 6))
    write_csv(tmp_path / "tiny.items.csv.gz", "item_id,category_id", *items)
    with pytest.raises(LogsError, match="no event with"):
        read_amazon(prefix)


def test_a_broken_gz_file_is_an_error_with_its_name(tmp_path: Path) -> None:
    """Cut short or not gzip at all."""
    prefix = amazon(tmp_path)
    path = tmp_path / "tiny.items.csv.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(LogsError, match=r"tiny\.items\.csv\.gz: file"):
        read_amazon(prefix)


# A team's own tables


def test_ids_above_two_to_the_53_keep_every_digit(tmp_path: Path) -> None:
    """Integers of a Parquet file and digits of a CSV file become the same text."""
    schema = own(tmp_path, own_events())
    parquet = read_tables(tmp_path, schema)
    assert set(parquet.users["user_id"]) == {str(BIG), str(BIG + 1), str(BIG + 2)}
    (tmp_path / "events.parquet").unlink()
    own(tmp_path, own_events().write_csv())
    assert read_tables(tmp_path, schema).events.equals(parquet.events)


@pytest.mark.parametrize("column", ["user_id", "item_id", "hour"])
def test_ids_in_a_float_column_are_refused(tmp_path: Path, column: str) -> None:
    """Digits are lost already in such a file; the error names the column."""
    schema = own(tmp_path, own_events().with_columns(pl.col(column).cast(pl.Float64)))
    with pytest.raises(LogsError, match=rf"events\.parquet: {column}: .*found float64"):
        read_tables(tmp_path, schema)


def test_own_items_have_categories_tags_and_blanks(tmp_path: Path) -> None:
    """Tags are split at '|'; an empty category is null and empty tags are none."""
    logs = read_tables(tmp_path, own(tmp_path, own_events()))
    assert logs.items.rows() == [("7", "ACME", ["red", "blue"]), ("8", None, [])]
    assert logs.events.schema["price"] == pl.Float64
    assert logs.events["hour"].to_list()[:2] == ["0", "3"]


def test_a_click_is_a_behaviour_where_the_tables_do_not_say(tmp_path: Path) -> None:
    """Without the column a row with label 1 is a behaviour; with it, the column decides."""
    schema = own(tmp_path, own_events())
    events = read_tables(tmp_path, schema).events
    assert (events["behaviour"] == (events["click"] == 1)).all()
    own(tmp_path, own_events().with_columns(behaviour=pl.lit(1)))
    assert read_tables(tmp_path, schema).events["behaviour"].all()


def test_the_last_tenth_by_time_is_test_and_equal_times_stay_together(tmp_path: Path) -> None:
    """Of 20 impressions two are test and two validation, or more where a time repeats."""
    schema = own(tmp_path, own_events())
    events = read_tables(tmp_path, schema).events.sort("ts")
    assert events["split"].to_list() == ["train"] * 16 + ["validation"] * 2 + ["test"] * 2
    own(tmp_path, own_events().with_columns(pl.col("ts").clip(0, 16)))
    events = read_tables(tmp_path, schema).events.sort("ts")
    assert events["split"].to_list() == ["train"] * 16 + ["test"] * 4
    own(tmp_path, own_events().with_columns(ts=pl.lit(1)))
    with pytest.raises(LogsError, match="ts: expected times"):
        read_tables(tmp_path, schema)


def test_a_given_split_and_rows_without_a_label_are_kept(tmp_path: Path) -> None:
    """A behaviour outside any impression has neither split nor label."""
    text = (
        "user_id,item_id,ts,click,price,hour,split,behaviour\n"
        "a,7,1,,,,,true\na,7,2,0,1.5,3,validation,false\nb,8,3,1,,4,test,TRUE\n"
    )
    events = read_tables(tmp_path, own(tmp_path, text)).events
    assert events["split"].to_list() == [None, "validation", "test"]
    assert events["click"].to_list() == [None, 0, 1]
    assert events["behaviour"].to_list() == [True, False, True]


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    """The mapping goes from our names to theirs, in every table that has them."""
    theirs = {"user_id": "uid", "ts": "when", "brand": "maker"}
    renamed = own_events().rename({"user_id": "uid", "ts": "when"})
    when = pl.col("when").map_elements(lambda s: datetime(2024, 1, 1, 0, s), pl.Datetime("us"))
    items = "item_id,maker,colours\n7,ACME,red\n8,ZZ,\n"
    schema = own(tmp_path, renamed.with_columns(when), items)
    logs = read_tables(tmp_path, schema, columns=theirs)
    assert logs.items["brand"].to_list() == ["ACME", "ZZ"]
    assert logs.events["ts"].diff().drop_nulls().max() == 3 * 60
    with pytest.raises(OptionError, match=r"user_id, ts: expected columns of .*events\.parquet"):
        read_tables(tmp_path, schema)
    with pytest.raises(OptionError, match="--column typo: expected one of "):
        read_tables(tmp_path, schema, columns={"typo": "uid"})
    with pytest.raises(
        OptionError, match=r"ts: .* ts= one of [^;]*; --column price=ts has taken"
    ) as said:
        read_tables(tmp_path, own(tmp_path, own_events()), columns={"price": "ts"})
    assert "ts" not in str(said.value).partition("one of ")[2].partition(";")[0].split(", ")


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"user_id": "bogus"}, "user_id=bogus: expected one of user_id, item_id, ts, click, price"),
        ({"user_id": ""}, "user_id=: expected one of user_id, item_id, ts, click, price, hour"),
        ({"brand": "hour"}, "brand=hour: expected one of item_id, brand, colours$"),
        ({"item_id": "bogus"}, "item_id=bogus: expected one of user_id, .*, hour, brand, colours$"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_another_name_is_that_of_a_column_of_the_tables(
    tmp_path: Path, kind: str, columns: dict[str, str], expected: str
) -> None:
    """It is told with the columns of the tables that the canonical one is of, before any row is
    read: the rows of these are none."""
    events = own_events()
    text = events.head(0).write_csv() + "a\n"
    schema = own(tmp_path, text if kind == "csv" else events.with_columns(ts=pl.lit("never")))
    with pytest.raises(OptionError, match=f"--column {expected}"):
        read_tables(tmp_path, schema, columns=columns)


def test_a_table_that_cannot_be_opened_is_told_of_before_its_columns(tmp_path: Path) -> None:
    """What its columns are is not known."""
    schema = own(tmp_path, own_events())
    (tmp_path / "events.parquet").write_bytes(b"nothing")
    with pytest.raises(LogsError, match=r"events\.parquet: file: expected one that can be read"):
        read_tables(tmp_path, schema, columns={"user_id": "uid"})


@pytest.mark.parametrize("bad", [0, 3])
def test_own_tables_without_events_are_refused(tmp_path: Path, bad: int) -> None:
    """Be there none, or none that is sound; nothing is written."""
    rows = own_events(bad).with_columns(pl.lit(None, pl.Int64).alias("user_id"))
    schema = own(tmp_path, rows.with_columns(pl.lit("train").alias("split")))
    found = f"{bad} malformed" if bad else "none"
    expected = rf"events\.parquet: rows: expected at least one row, found {found}"
    with pytest.raises(LogsError, match=expected):
        prepare(tmp_path, schema, tmp_path / "out", partial(start, "duckdb"), max_bad_share=1.0)
    assert not (tmp_path / "out").exists()


def test_malformed_rows_of_own_tables_have_reasons_and_lines(tmp_path: Path) -> None:
    """Quotes and CRLF are read, empty lines skipped, and lines still count from the header."""
    text = (
        "\ufeffuser_id,item_id,ts,click,price,hour\r\n"
        '"a,b",7,1,1,"2.5",3\r\n'
        "\r\n"
        "a,7,2,2,1,3\r\n"
        "a,7,2,1,inf,3\r\n"
        "a,7,2,1,cheap,3\r\n"
        "a,7,2.5,1,1,3\r\n"
        ",7,2,1,1,3\r\n"
        'a,"7,2,1,1,3\r\n'
        "a,7,2,,1,3\r\n"
        "a,7,3,1,1,3\r\n" + "".join(f"a,8,{ts},0,1,3\r\n" for ts in range(4, 12))
    )
    logs = read_tables(tmp_path, own(tmp_path, text), max_bad_share=0.5)
    assert [(line, reason) for _, line, reason in logs.malformed.bad] == [
        (4, "click is not 0, 1 or null"),
        (5, "price is not a finite number"),
        (6, "price is not a finite number"),
        (7, "ts is not an integer"),
        (8, "empty user_id"),
        (9, "the number of fields is not 6"),
        (10, "neither a behaviour nor an impression"),
    ]
    assert logs.events["user_id"].to_list() == ["a"] * 9 + ["a,b"]


def test_malformed_rows_of_parquet_have_row_numbers(tmp_path: Path) -> None:
    """The first row is row 1."""
    ts = [float("nan") if row == 4 else float(row) for row in range(20)]
    price = [float("inf") if row == 9 else 1.0 for row in range(20)]
    events = own_events().with_columns(ts=pl.Series(ts), price=pl.Series(price))
    logs = read_tables(tmp_path, own(tmp_path, events), max_bad_share=0.2)
    assert [(line, reason) for _, line, reason in logs.malformed.bad] == [
        (5, "ts is not an integer"),
        (10, "price is not a finite number"),
    ]


def test_bytes_that_are_no_text_are_one_malformed_line(tmp_path: Path) -> None:
    """The rest of the file is read."""
    schema = own(tmp_path, own_events().write_csv())
    path = tmp_path / "events.csv"
    path.write_bytes(path.read_bytes() + b"\xff\xfe,7,30,1,1.0,3\n")
    logs = read_tables(tmp_path, schema, max_bad_share=0.1)
    assert [(line, reason) for _, line, reason in logs.malformed.bad] == [(22, "not utf-8 text")]


def test_files_read_in_parts_are_those_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the parts: the same rows, lines and reasons, and the bytes that are read add up."""
    text = own_events().write_csv().replace("\n", "\n\n", 3).splitlines()
    text[7] = '1,"2'
    text[12] = "1,2"
    schema = own(tmp_path, "\n".join(text))
    whole = read_tables(tmp_path, schema, max_bad_share=0.2)
    assert len(whole.malformed.bad) == 2
    for size in (0, 7, 100):
        monkeypatch.setattr(parts, "SLICE", size)
        told: list[tuple[int, int]] = []

        def update(stage: str, done: int, total: int, figures: object, told=told) -> None:
            if stage == "read kB":
                told.append((done, total))

        again = read_tables(tmp_path, schema, max_bad_share=0.2, update=update)
        assert again.events.equals(whole.events)
        assert again.malformed == whole.malformed
        assert told == sorted(told)
        assert told[-1][0] == told[-1][1] > 0


def test_a_missing_table_or_column_is_named(tmp_path: Path) -> None:
    """Whether events, a table with fields, or one column of it."""
    schema = own(tmp_path, own_events().drop("price"))
    with pytest.raises(OptionError, match=r"price: expected columns of .*events\.parquet"):
        read_tables(tmp_path, schema)
    own(tmp_path, own_events())
    (tmp_path / "items.csv").unlink()
    with pytest.raises(LogsError, match="items: expected a table with brand"):
        read_tables(tmp_path, schema)
    with pytest.raises(LogsError, match="events: expected a table"):
        read_tables(tmp_path / "nowhere", schema)


def test_a_prefix_names_tables_as_a_folder_does(tmp_path: Path) -> None:
    """``day1`` stands for day1.events.csv.gz and its likes; two forms of one table are refused."""
    schema = own(tmp_path, own_events())
    folder = read_tables(tmp_path, schema)
    write_csv(tmp_path / "day1.events.csv.gz", own_events().write_csv().rstrip())
    (tmp_path / "items.csv").rename(tmp_path / "day1.items.csv")
    assert read_tables(tmp_path / "day1", schema).events.equals(folder.events)
    own_events().write_parquet(tmp_path / "day1.events.parquet")
    with pytest.raises(LogsError, match="expected one table"):
        read_tables(tmp_path / "day1", schema)


# The canonical form


def test_written_logs_read_back_the_same(tmp_path: Path) -> None:
    """Every table, and the schema word for word, over older logs as well."""
    logs = read_tables(tmp_path, own(tmp_path, own_events()))
    read_movielens(movielens(tmp_path, ratings_of(40))).write(tmp_path / "logs")
    logs.write(tmp_path / "logs")
    again = Logs.read(tmp_path / "logs")
    assert again.schema == logs.schema
    assert (tmp_path / "logs" / "schema.toml").read_text(encoding="utf-8") == SCHEMA
    for ours, theirs in zip(again._tables().values(), logs._tables().values(), strict=True):
        assert ours.equals(theirs)
    names = {path.name for path in (tmp_path / "logs").iterdir()}
    assert names == {"events.parquet", "items.parquet", "users.parquet", "schema.toml"}


def test_a_failed_write_leaves_the_old_logs(tmp_path: Path) -> None:
    """Nothing is replaced before everything is written."""
    logs = read_amazon(amazon(tmp_path))
    logs.write(tmp_path / "logs")
    broken = replace(logs, users=None)  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        broken.write(tmp_path / "logs")
    assert Logs.read(tmp_path / "logs").events.equals(logs.events)
    assert len(list((tmp_path / "logs").iterdir())) == 4


@pytest.mark.parametrize(
    ("column", "change", "expected"),
    [
        ("user_id", pl.col("user_id").cast(pl.Int64), "type String, found Int64"),
        ("ts", pl.col("ts").cast(pl.Float64), "type Int64, found Float64"),
        ("ts", -pl.col("ts"), "sorted"),
        ("item_id", pl.lit(""), "not empty"),
        ("split", pl.lit("dev"), "train, validation, test or null"),
        ("ctr", pl.lit(2, pl.Int8), "0, 1 or null"),
        ("ctr", pl.lit(None, pl.Int8), "a label where there is a split"),
        ("behaviour", pl.lit(False), "a behaviour, an impression or both"),
    ],
)
def test_reading_refuses_events_that_are_not_canonical(
    tmp_path: Path, column: str, change: pl.Expr, expected: str
) -> None:
    """The error names the file, the column and what was expected there."""
    folder = tmp_path / "logs"
    logs = read_amazon(amazon(tmp_path))
    logs.write(folder)
    logs.events.with_columns(change.alias(column)).write_parquet(folder / "events.parquet")
    with pytest.raises(LogsError, match=rf"events\.parquet: {column}: .*{expected}") as caught:
        Logs.read(folder)
    assert caught.value.column == column


def test_reading_refuses_a_folder_that_is_not_whole(tmp_path: Path) -> None:
    """A missing column, a repeated item, a file that isn't Parquet, and no schema at all."""
    folder = tmp_path / "logs"
    logs = read_amazon(amazon(tmp_path))
    logs.write(folder)
    items = folder / "items.parquet"
    logs.items.drop("category").write_parquet(items)
    with pytest.raises(LogsError, match=r"items\.parquet: category: .*found none"):
        Logs.read(folder)
    pl.concat([logs.items, logs.items]).write_parquet(items)
    with pytest.raises(LogsError, match=r"items\.parquet: item_id: expected each id once"):
        Logs.read(folder)
    items.write_bytes(b"nothing")
    with pytest.raises(LogsError, match=r"items\.parquet: file"):
        Logs.read(folder)
    (folder / "schema.toml").unlink()
    with pytest.raises(SchemaError, match=r"schema\.toml"):
        Logs.read(folder)


# Real data


@pytest.mark.real_data
def test_movielens_has_its_published_counts(data: Path) -> None:
    """1,000,209 impressions, 1,679 test users, no malformed row, 57.5 % liked."""
    logs = read_movielens(data / "ml-1m.zip", data / "ml-1m.test_users.txt")
    assert logs.events.height == 1_000_209
    assert logs.events["split"].null_count() == 0
    test = logs.events.filter(pl.col("split") == "test")
    assert test["user_id"].n_unique() == 1_679
    assert logs.events["user_id"].n_unique() == 6_040
    assert logs.malformed.count == 0
    assert logs.events["ctr"].mean() == pytest.approx(0.575, abs=0.001)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "users", "items", "events"),
    [("beauty", 22_363, 12_101, 198_502), ("sports", 35_598, 18_357, 296_337)],
)
def test_amazon_has_its_published_counts(
    data: Path, name: str, users: int, items: int, events: int
) -> None:
    """Two test impressions per user, and a pair for each step between the first and the last."""
    logs = read_amazon(data / f"amazon-{name}")
    assert (logs.users.height, logs.items.height) == (users, items)
    assert logs.events["behaviour"].sum() == events
    split = dict(logs.events.group_by("split").len().iter_rows())
    assert split["test"] == 2 * users
    assert split["train"] + split["validation"] == 2 * (events - 2 * users)
    assert split["validation"] / 2 == pytest.approx(0.2 * users, rel=0.05)
    assert logs.malformed.count == 0

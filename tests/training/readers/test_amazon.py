"""Amazon reviews as published by SNAP; the CSV form is tested with the canonical form."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path

import polars as pl
import pytest

from tests.training.prepared import read_chunks
from tests.training.readers import files
from tests.training.readers.files import described, review
from tests.training.spilled import in_groups
from training.logs import LogsError
from training.readers import amazon

read_amazon_reviews = partial(read_chunks, amazon.read_amazon_reviews)
GOODS = [described(f"B{n}", ["All", "x"], ["Toys", f"c{n % 3}"]) for n in range(9)]


def reviews(users: int = 4) -> list[str]:
    """User u has the goods u, .., u + 4, the last reviewed first in the file."""
    return [review(f"U{u}", f"B{u + at}", 10 * at) for u in range(users) for at in range(4, -1, -1)]


def test_a_user_s_reviews_go_by_time_and_each_but_the_first_is_a_pair(tmp_path: Path) -> None:
    """Steps 1 to n-2 train, step n-1 is test; both of a pair see the same history."""
    folder = files.amazon(tmp_path, reviews(), GOODS)
    logs = read_amazon_reviews(folder, validation_share=0.0)
    events = logs.events.filter(pl.col("user_id") == "U2")
    shown = [(at, label) for at in range(1, 5) for label in (1, 0)]
    pairs = events.filter(pl.col("ctr").is_not_null())
    assert pairs.select("ts", "ctr").rows() == shown
    assert pairs["split"].to_list() == ["train"] * 6 + ["test"] * 2
    own = events.filter("behaviour")
    assert own["item_id"].to_list() == ["B2", "B3", "B4", "B5", "B6"]
    assert own["split"][0] is None
    assert set(events.filter(~pl.col("behaviour"))["item_id"]) <= {"B0", "B1", "B7"}


def test_equal_times_keep_the_order_of_the_file(tmp_path: Path) -> None:
    """Times are days, so many are equal: none of them is lost to the history."""
    lines = [review("U", f"B{n}", 100) for n in (3, 1, 2)] + [review("V", "B7", 1)]
    events = read_amazon_reviews(files.amazon(tmp_path, lines, GOODS)).events
    own = events.filter("behaviour", pl.col("user_id") == "U")
    assert own.select("item_id", "ts").rows() == [("B3", 0), ("B1", 1), ("B2", 2)]


def test_the_category_is_the_last_of_the_last_list(tmp_path: Path) -> None:
    """As in DIN's own preparation; goods without a review are no items."""
    logs = read_amazon_reviews(files.amazon(tmp_path, reviews(2), GOODS))
    assert logs.items.rows() == [(f"B{n}", f"c{n % 3}") for n in range(6)]
    assert logs.schema.name == "amazon-reviews"


def test_goods_without_metadata_are_counted_and_never_drawn(tmp_path: Path) -> None:
    """Their reviews stay in the histories."""
    logs = read_amazon_reviews(files.amazon(tmp_path, reviews(), GOODS[1:]))
    assert logs.left_out == {"goods from the items, without metadata": 1}
    assert logs.events.filter(pl.col("item_id") == "B0")["behaviour"].to_list() == [True]
    assert "B0" not in logs.items["item_id"]


def test_of_a_pair_of_files_the_reviews_may_be_named(tmp_path: Path) -> None:
    """A folder with two categories asks for one; the metadata lies beside the reviews."""
    files.amazon(tmp_path, reviews(), GOODS, "Toys")
    one = read_amazon_reviews(tmp_path)
    files.amazon(tmp_path, reviews(3), GOODS, "Books")
    again = read_amazon_reviews(tmp_path / "reviews_Toys_5.json.gz")
    assert again.events.equals(one.events)
    with pytest.raises(LogsError, match=r"one such file, found reviews_Books.*, reviews_Toys"):
        read_amazon_reviews(tmp_path)
    with pytest.raises(LogsError, match=r"events\.csv: name: expected reviews_X_5"):
        read_amazon_reviews(tmp_path / "events.csv")
    (tmp_path / "meta_Toys.json.gz").unlink()
    with pytest.raises(LogsError, match=r"meta_Toys\.json\.gz: file: expected a readable file"):
        read_amazon_reviews(tmp_path / "reviews_Toys_5.json.gz")


def test_the_size_of_electronics_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another is an error unless it is said to be a part; of other categories none is known."""
    files.amazon(tmp_path, reviews(2), GOODS, "Electronics")
    with pytest.raises(LogsError, match="reviews: expected the published 1,689,188, found 10"):
        read_amazon_reviews(tmp_path)
    assert read_amazon_reviews(tmp_path, partial=True).users.height == 2
    found = {"reviews": 10, "users": 2, "goods": 6, "categories": 3}
    monkeypatch.setattr(amazon, "PUBLISHED", {"Electronics": found})
    assert read_amazon_reviews(tmp_path).users.height == 2
    monkeypatch.setattr(amazon, "PUBLISHED", {"Electronics": {**found, "categories": 4}})
    with pytest.raises(LogsError, match="categories: expected the published 4, found 3"):
        read_amazon_reviews(tmp_path)


def test_malformed_reviews_and_metadata_have_their_line(tmp_path: Path) -> None:
    """Each kind has its reason; a literal that is none, too deep or too long stops nothing."""
    one = review("U", "B1", 1)
    broken = ["not JSON", '{"asin": "B1"}', '{"reviewerID": "U"}']
    broken += [one.replace('"unixReviewTime": 1', '"unixReviewTime": "soon"')]
    broken += [one.replace('"U"', '{"a": 1}').replace('"B1"', "[1, 2]")]
    broken += [one.replace('"B1"', "[1, 2]"), one.replace('"U"', "7")]
    broken += [one.replace('"unixReviewTime": 1', '"unixReviewTime": "1"')]
    asked = [review("V", f"X{n}", n) for n in range(6)]
    meta = [
        "{'asin': 'X0', 'categories': [['a']]",
        "{'asin': 'X1', 'categories': []}",
        "{'asin': 'X2', 'categories': " + "[" * 5000 + "]" * 5000 + "}",
        "{'asin': 'X3', 'title': '" + "x" * amazon.LONGEST_META + "', 'categories': [['a']]}",
        "{'asin': 'X4', 'categories': __import__('os').listdir()}",
        "['asin', {'asin': 'X5'}]",
        "{'title': 'no asin'}",
        r"{'asin': 'X6', 'title': '\d', 'categories': [['a']]}",
    ]
    asked += [review("V", "X6", 9)]
    folder = files.amazon(tmp_path, [*reviews(), *broken, *asked], [*GOODS, *meta])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logs = read_amazon_reviews(folder, max_bad_share=0.9)
    assert [(line, reason) for _, line, reason in logs.malformed.bad] == [
        (21, "not a JSON object with reviewerID, asin and unixReviewTime"),
        (22, "empty reviewerID"),
        (23, "empty asin"),
        (24, "unixReviewTime is not an integer"),
        (25, "reviewerID is not a text"),
        (26, "asin is not a text"),
        (27, "reviewerID is not a text"),
        (28, "unixReviewTime is not an integer"),
        (10, "not a Python literal"),
        (11, "categories is not a list of lists of texts"),
        (12, "not a Python literal"),
        (13, "longer than 1,048,576 characters"),
        (14, "not a Python literal"),
        (15, "not a dict with this asin"),
        (16, "no asin of the form 'asin': '...'"),
    ]
    assert "X6" in logs.items["item_id"]


def test_groups_of_users_are_the_same_logs_as_all_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the goods that are drawn for each group; one of them at a time is in memory."""
    lines = [
        review(f"A{user * 37 % 1000:03}", f"B{user * at % 40}", at * 3 % 4)
        for at in range(1, 7)
        for user in range(250)
    ]
    goods = [described(f"B{n}", [f"c{n % 3}"]) for n in range(39)]
    folder = files.amazon(tmp_path, [*lines, "not JSON"], goods)
    one = read_amazon_reviews(folder)
    found = in_groups(monkeypatch, run=2000, group=2000)
    many = read_amazon_reviews(folder)
    assert len(found) > 9
    kept = pl.when("behaviour").then("item_id").alias("item_id")
    assert many.events.with_columns(kept).equals(one.events.with_columns(kept))
    assert (many.items.equals(one.items), many.users.equals(one.users)) == (True, True)
    assert (many.left_out, many.malformed) == (one.left_out, one.malformed)
    assert many.left_out == {"goods from the items, without metadata": 1}
    assert many.malformed.count == 1
    has = many.events.filter("behaviour").select("user_id", "item_id")
    negatives = many.events.filter(~pl.col("behaviour"))
    assert negatives["split"].unique().sort().to_list() == ["test", "train", "validation"]
    assert negatives.join(has, on=["user_id", "item_id"]).is_empty()
    assert set(negatives["item_id"]) <= set(many.items["item_id"])


def test_no_two_groups_and_no_test_pairs_repeat_a_draw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Users of one history, each in a group of its own: their draws would else be the same."""
    lines = [review(f"A{user}", f"B{at}", at) for user in range(10, 40) for at in range(3)]
    lines += [review(f"B{good}", f"B{good}", 1) for good in range(3, 9)]
    found = in_groups(monkeypatch, run=1000, group=1)
    events = read_amazon_reviews(files.amazon(tmp_path, lines, GOODS), validation_share=0.0).events
    assert len(found) == 36
    train, test = (
        events.filter(~pl.col("behaviour"), pl.col("split") == split)["item_id"]
        for split in ("train", "test")
    )
    assert min(train.n_unique(), test.n_unique()) > 1
    assert not train.equals(test)

"""Ali-CCP: click and conversion."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import polars as pl
import pytest

from tests.training.prepared import read_chunks
from tests.training.readers import files
from tests.training.readers.files import common, sample
from tests.training.spilled import in_groups
from training.dataset import build, learn_encoder
from training.logs import LogsError
from training.readers import ali_ccp

read_ali_ccp = partial(read_chunks, ali_ccp.read_ali_ccp)
USER = [
    ("101", "31319", "1.0"),
    ("109_14", "12", "0.7"),
    ("109_14", "11", "2.30259"),
    ("109_14", "13", "1.6"),
    ("110_14", "5", "0.5"),
    ("110_14", "6", "1.5"),
    ("129", "4", "1.0"),
]
GOOD = [
    ("205", "100", "1.0"),
    ("206", "11", "1.0"),
    ("207", "3", "1.0"),
    ("210", "8", "1.0"),
    ("210", "9", "2.0"),
    ("301", "2", "1.0"),
    ("508", "11", "2.30259"),
    ("853", "8", "1e-1"),
    ("853", "9", "0.5"),
]
LABELS = ((0, 0), (1, 0), (1, 1))


def samples(*indexes: str) -> list[str]:
    pairs = ((index, labels) for index in indexes for labels in LABELS)
    return [sample(n, *labels, index, *GOOD) for n, (index, labels) in enumerate(pairs)]


def tiny(folder: Path, *, train: list[str] | None = None, users: list[str] | None = None) -> Path:
    users = [common("a1", *USER), common("b2", *USER[:1])] if users is None else users
    return files.ali_ccp(
        folder,
        (samples("a1", "b2") if train is None else train, users),
        (samples("a1"), [common("a1", *USER)]),
    )


def test_a_sample_has_both_labels_and_its_features(tmp_path: Path) -> None:
    """The category is the item; crossed features have their value, several the largest."""
    events = read_ali_ccp(tiny(tmp_path), partial=True).events
    shown = events.filter(pl.col("user_id") == "test:a1", ~pl.col("behaviour"))
    assert shown.select("ctr", "conversion", "split").rows() == [(*la, "test") for la in LABELS]
    assert shown.drop("ctr", "conversion").unique().to_dicts() == [
        {
            "user_id": "test:a1",
            "item_id": "11",
            "ts": 1,
            "behaviour": False,
            "split": "test",
            "strength": None,
            "scene": "2",
            "product": "100",
            "shop": "3",
            "brand": None,
            "intention": ["9", "8"],
            "known_category": 2.30259,
            "known_shop": None,
            "known_brand": None,
            "known_intention": 0.5,
        }
    ]


def test_the_past_of_common_features_is_the_history_weakest_first(tmp_path: Path) -> None:
    """Categories are behaviours, so the most recent of them are the strongest; a user may have
    none."""
    logs = read_ali_ccp(tiny(tmp_path), partial=True)
    past = logs.events.filter("behaviour", pl.col("user_id") == "train:a1")
    assert past.select("item_id", "strength").rows() == [("12", 0.7), ("13", 1.6), ("11", 2.30259)]
    one, other = logs.users.filter(pl.col("user_id").str.starts_with("train")).to_dicts()
    assert (one["user"], one["geography"], one["gender"]) == ("31319", "4", None)
    assert (one["shops"], one["brands"], other["shops"]) == (["6", "5"], [], [])
    sets = build(logs, learn_encoder(logs))
    assert (sets["test"].stop - sets["test"].start).tolist() == [3, 3, 3]


def test_validation_is_a_tenth_of_the_users_whatever_their_lines(tmp_path: Path) -> None:
    """Both lines of common features of a user go into the same split."""
    indexes = [f"{user}x{line}" for user in range(1000) for line in range(2)]
    users = [common(index, ("101", index.split("x")[0], "1.0")) for index in indexes]
    lines = [sample(n, 0, 0, index, ("206", "1", "1.0")) for n, index in enumerate(indexes)]
    logs = read_ali_ccp(tiny(tmp_path, train=lines, users=users), partial=True)
    shown = logs.events.filter(pl.col("user_id").str.starts_with("train:"))
    owner = pl.col("user_id").str.extract("train:(.*)x")
    each = shown.group_by(owner).agg(pl.col("split").unique())["split"]
    assert each.list.len().max() == 1
    assert (each.list.first() == "validation").mean() == pytest.approx(0.1, abs=0.03)


def test_what_has_no_use_is_left_out_and_counted(tmp_path: Path) -> None:
    """Samples without common features, bought and not clicked; an index that came before."""
    train = [*samples("a1", "zz"), sample(9, 0, 1, "a1", *GOOD)]
    users = [common("a1", *USER), common("a1", *USER[:1])]
    logs = read_ali_ccp(tiny(tmp_path, train=train, users=users), partial=True)
    assert logs.left_out == {
        "train common features whose index came before": 1,
        "train samples without common features": 3,
        "train samples that were bought and not clicked": 1,
    }
    assert logs.events["behaviour"].sum() == 6


def test_malformed_lines_have_their_number_and_reason(tmp_path: Path) -> None:
    """There is no header; features are held to their form and their number."""
    right = "1,206\x0211\x031.0"
    train = [
        *samples("a1"),
        f"1,2,0,a1,{right}",
        f"1,0,x,a1,{right}",
        f"1,0,0,,{right}",
        "1,0,0,a1,1,206\x0211",
        "1,0,0,a1,1,206\x0211\x03much",
        "1,0,0,a1,2,206\x0211\x031.0",
        "1,0,0,a1,1,205\x0211\x031.0",
        "1,0,0,a1",
        f"four,0,0,a1,{right}",
    ]
    users = [common("a1", *USER), common("b2", *USER[1:])]
    folder = tiny(tmp_path, train=train, users=users)
    logs = read_ali_ccp(folder, partial=True, max_bad_share=0.9)
    form = r"feature_list is not field \x02 id \x03 value, joined by \x01"
    assert [(line, reason) for _, line, reason in logs.malformed.bad] == [
        (2, "no feature 101, the user"),
        (4, "click is not 0 or 1"),
        (5, "buy is not 0 or 1"),
        (6, "empty index"),
        (7, form),
        (8, form),
        (9, "feature_num is not the number of features"),
        (10, "no feature 206, the category"),
        (11, "the number of fields is not 6"),
        (12, "sample_id is not a whole number of at most 9 digits"),
    ]


def test_another_size_than_the_published_is_an_error_unless_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The samples of each skeleton are counted."""
    folder = tiny(tmp_path)
    expected = r"sample_skeleton_train\.csv: samples: expected the published 42,300,135, found 6"
    with pytest.raises(LogsError, match=expected):
        read_ali_ccp(folder)
    sizes = {"train": {"samples": 6}, "test": {"samples": 3}}
    monkeypatch.setattr(ali_ccp, "PUBLISHED", sizes)
    assert read_ali_ccp(folder).users.height == 3
    monkeypatch.setattr(ali_ccp, "PUBLISHED", {**sizes, "test": {"samples": 4}})
    with pytest.raises(LogsError, match=r"skeleton_test\.csv: samples: .* 4, found 3"):
        read_ali_ccp(folder)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """Before anything is read."""
    folder = tiny(tmp_path)
    (folder / "common_features_test.csv").unlink()
    with pytest.raises(LogsError, match=r"common_features_test\.csv: expected one file of"):
        read_ali_ccp(folder, partial=True)


def test_groups_of_users_are_the_same_logs_as_all_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both splits, and indexes that come twice or never; of one group at a time."""
    users = [common(f"{n * 7919 % 1000:03d}", *USER[: 1 + n % 7]) for n in range(200)] * 2
    shown = [
        sample(n, *((*LABELS, (0, 1))[n % 4]), f"{n * 37 % 1000:03d}", *GOOD[: 2 + n % 8])
        for n in range(900)
    ]
    folder = files.ali_ccp(tmp_path, (shown, users), (shown[::3], users[:150] + users[:3]))
    one = read_ali_ccp(folder, partial=True)
    found = in_groups(monkeypatch, run=10_000, group=10_000)
    many = read_ali_ccp(folder, partial=True)
    assert len(found) > 9
    assert many.events.equals(one.events)
    assert (many.items.equals(one.items), many.users.equals(one.users)) == (True, True)
    assert (many.left_out, many.malformed) == (one.left_out, one.malformed)
    assert len(one.left_out) == 6


def test_samples_whose_common_features_are_missing_are_no_logs(tmp_path: Path) -> None:
    """Where that is so for all: nothing is written."""
    folder = files.ali_ccp(
        tmp_path, (samples("zz"), [common("a1", *USER)]), (samples("zz"), [common("a1", *USER)])
    )
    with pytest.raises(LogsError, match="expected samples with common features, found none"):
        read_ali_ccp(folder, partial=True)

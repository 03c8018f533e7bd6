"""The dataset: what each impression sees, as a brute force over the raw events says."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.contract.batch import Batch
from model.contract.encode import Encoder, Request
from model.contract.ids import FIRST, OOV, key
from model.contract.schema import Schema
from training.dataset import Dataset, build, learn_encoder, visible
from training.logs import Logs

SPLITS = ("train", "validation", "test")
SEEN_COLUMNS = (("seen_length", 5), ("seen_newest", 6))
PLAIN = """
name = "plain"
history_length = 3
[[item]]
name = "item_id"
"""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "schema.toml"
    path.write_text(PLAIN)
    return path


raw_events = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.integers(0, 30).map(str),
        st.integers(0, 8),
        st.booleans(),
        st.sampled_from([*SPLITS, "train", "train", None]),
    ).filter(lambda event: event[3] or event[4]),
    min_size=1,
    max_size=40,
)
Raw = tuple[str, str, int, bool, str | None]


def logs_of(events: list[Raw], schema: Path) -> Logs:
    """Logs of raw events; item 'x' is none of theirs."""
    names = ["user_id", "item_id", "ts", "behaviour", "split"]
    types = [pl.String, pl.String, pl.Int64, pl.Boolean, pl.String]
    frame = pl.DataFrame(events, schema=dict(zip(names, types, strict=True)), orient="row")
    label = pl.when(pl.col("split").is_not_null()).then(0).cast(pl.Int8).alias("ctr")
    items = pl.DataFrame({"item_id": ["x"]})
    users = frame.select(pl.col("user_id").unique())
    return Logs.build(schema, frame.with_columns(label), items, users)


def sees(events: list[Raw], impression: Raw, length: int) -> list[str]:
    """The most recent behaviours of the impression's user with a smaller ts, oldest first."""
    user, _, ts, _, _ = impression
    earlier = [e for e in events if e[0] == user and e[3] and e[2] < ts]
    return [e[1] for e in sorted(earlier, key=lambda e: e[2])][-length:]


@settings(max_examples=60, deadline=None)
@given(events=raw_events, block=st.integers(1, 9), size=st.integers(1, 12), seed=st.integers(0, 9))
def test_an_impression_sees_only_what_is_earlier(
    plain: Path, events: list[Raw], block: int, size: int, seed: int
) -> None:
    """Shuffled and tied times: each candidate of each batch has the brute force's history."""
    logs = logs_of(events, plain)
    encoder = learn_encoder(logs)
    table = encoder.tables["item_id"]

    def row(text: str) -> int:
        return int(table.rows(np.array([key(text)], np.uint64))[0])

    for split, dataset in build(logs, encoder).items():
        impressions = sorted(
            (e for e in events if e[4] == split), key=lambda e: (e[0], e[2])
        )  # stable, as the logs are
        expected = [[row(x) for x in sees(events, e, 3)] for e in impressions]
        assert len(dataset) == len(impressions)
        for begin, end in dataset.plan(size, block, seed):
            batch, at = dataset.batch(begin, end)
            seen = np.zeros(batch.history.shape[:2], bool)
            for c, impression in enumerate(at):
                place = batch.owner[c], slice(batch.start[c], batch.stop[c])
                seen[place] = True
                assert batch.history[place][:, 0].tolist() == expected[impression]
                assert batch.item[c].tolist() == [row(impressions[impression][1])]
            assert not batch.history[~seen].any()  # nothing is embedded that no one sees


@given(
    events=st.lists(st.tuples(st.integers(0, 3), st.integers(-3, 3), st.booleans()), max_size=30),
    length=st.integers(1, 4),
)
def test_visible_is_the_brute_force(events: list[tuple[int, int, bool]], length: int) -> None:
    """Of sorted events with ties: the last ``length`` behaviours with a strictly smaller ts."""
    events.sort(key=lambda e: e[:2])
    user, ts, behaviour = np.array(events).reshape(-1, 3).T
    start, stop = visible(user, ts, behaviour.astype(bool), length)
    behaviours = [(u, t) for u, t, happened in events if happened]
    for (u, t, _), first, last in zip(events, start, stop, strict=True):
        earlier = [at for at, (v, s) in enumerate(behaviours) if v == u and s < t][-length:]
        assert list(range(first, last)) == earlier


Looked = tuple[str, int, bool, tuple[int, int] | None]


@settings(max_examples=80, deadline=None)
@given(
    events=st.lists(
        st.tuples(
            st.sampled_from("ab"),
            st.integers(0, 9),
            st.booleans(),
            st.none() | st.tuples(st.integers(0, 5), st.integers(-1, 10)),
        ),
        min_size=1,
        max_size=30,
    ),
    block=st.integers(1, 9),
)
def test_an_impression_sees_what_its_score_looked_at_and_nothing_later(
    plain: Path, events: list[Looked], block: int
) -> None:
    """In any order: the last so many behaviours up to the newest, without those that are not
    earlier; each is in the batch, and n_j counts it."""
    events = sorted(events, key=lambda e: e[:2])
    # An impression (its item is x) has what its score looked at, or None; a behaviour has not.
    rows = [
        (
            user,
            str(at) if behaviour else "x",
            ts,
            behaviour,
            None if behaviour else "train",
            None if behaviour or seen is None else seen[0],
            None if behaviour or seen is None or not seen[0] else seen[1],
        )
        for at, (user, ts, behaviour, seen) in enumerate(events)
    ]
    plainly: list[Raw] = [row[:5] for row in rows]
    logs = logs_of(plainly, plain)
    seen_columns = [pl.Series(n, [row[i] for row in rows], pl.Int64) for n, i in SEEN_COLUMNS]
    logs = replace(logs, events=logs.events.with_columns(seen_columns))
    logs.check()
    encoder = learn_encoder(logs)

    def expected(row: tuple[Any, ...]) -> list[str]:
        user, _, ts, _, _, length, newest = row
        mine = [e for e in plainly if e[0] == user and e[3]]
        if length is None:
            return sees(plainly, row[:5], 3)
        known = [e for e in mine if length and e[2] <= newest]
        return [e[1] for e in known[max(0, len(known) - min(length, 3)) :] if e[2] < ts]

    impressions = [row for row in rows if row[4]]
    train = build(logs, encoder)["train"]
    table = encoder.tables["item_id"]
    counted = np.zeros(table.size)
    checked = 0
    for begin, end in train.plan(7, block, None):
        batch, at = train.batch(begin, end)
        for c, impression in enumerate(at):
            history = batch.history[batch.owner[c], batch.start[c] : batch.stop[c], 0]
            wanted = [key(text) for text in expected(impressions[impression])]
            assert history.tolist() == table.rows(np.array(wanted, np.uint64)).tolist()
            counted[list({*history.tolist(), *batch.item[c].tolist()})] += 1
            checked += 1
    assert checked == len(impressions)
    np.testing.assert_array_equal(train.occurrences()["item_id"], counted)


@pytest.mark.parametrize("split", SPLITS)
def test_what_trains_is_what_a_request_encodes_to(
    shop_logs: Logs, shop_encoder: Encoder, shop_sets: dict[str, Dataset], split: str
) -> None:
    """Raw values of any impression, as a request, give the arrays of the training batch."""
    schema, dataset = shop_logs.schema, shop_sets[split]
    events = shop_logs.events
    users = {row["user_id"]: row for row in shop_logs.users.to_dicts()}
    raw = events.to_dicts()
    behaviours = events.filter("behaviour").to_dicts()
    names = ["item_id", "ts", *(field.name for field in schema.behaviour)]
    checked = 0
    for begin, end in dataset.plan(32, 5, 3)[:4]:
        batch, at = dataset.batch(begin, end)
        for c, impression in enumerate(at):
            event = raw[dataset.event[impression]]
            history = [
                {name: each[name] for name in names}
                for each in behaviours
                if each["user_id"] == event["user_id"] and each["ts"] < event["ts"]
            ]
            context = {field.name: event[field.name] for field in schema.context}
            given = {field.name: event[field.name] for field in schema.ad}
            request = Request(
                candidates=[event["item_id"]],
                history=shop_encoder.records(history),
                user=users.get(event["user_id"], {}),
                context=context,
                given=[given],
            )
            online, _ = shop_encoder.encode(request)
            owner = batch.owner[c]
            offline = replace(
                online,
                history=batch.history[[owner], batch.start[c] : batch.stop[c]],
                ts=batch.ts[[owner], batch.start[c] : batch.stop[c]],
                user=batch.user[[owner]],
                **{name: getattr(batch, name)[[c]] for name in ("item", "ad", "context")},
            )
            for each in fields(Batch):
                np.testing.assert_array_equal(
                    getattr(online, each.name), getattr(offline, each.name), err_msg=each.name
                )
            labels = [event[task] for task in schema.tasks]
            assert dataset.label[impression].tolist() == labels
            checked += 1
    assert checked > 40


def test_every_event_has_its_user_and_labels_once(
    shop_logs: Logs, shop_sets: dict[str, Dataset]
) -> None:
    """The three splits together hold each impression exactly once."""
    found = np.concatenate([shop_sets[split].event for split in SPLITS])
    shown = shop_logs.events["split"].is_not_null().arg_true().to_numpy()
    np.testing.assert_array_equal(np.sort(found), shown)
    assert min(len(shop_sets[split]) for split in SPLITS) > 30


def test_an_epoch_has_each_impression_once_in_as_many_batches(
    shop_sets: dict[str, Dataset],
) -> None:
    """Whatever the seed; other seeds mix other blocks; none reads them in order."""
    train = shop_sets["train"]
    for size, block in ((64, 8), (7, 7), (5, 50), (10_000, 3)):
        firsts = []
        for seed in (None, 0, 1, 2, (0, 1)):
            plan = train.plan(size, block, seed)
            assert len(plan) == -(-len(train) // size)
            parts = [train.batch(*part)[1] for part in plan]
            assert max(map(len, parts)) < 2 * size
            found = np.concatenate(parts)
            np.testing.assert_array_equal(np.sort(found), np.arange(len(train)))
            firsts.append(found.tolist())
        assert firsts[0] == sorted(firsts[0])
        assert len({str(found) for found in firsts}) == 5


def test_a_block_is_of_one_user_and_without_gaps(plain: Path) -> None:
    """Impressions so far apart that behaviours between them are seen by neither share no slab."""
    between: list[Raw] = [("a", str(ts), ts, True, None) for ts in range(3, 12)]
    events: list[Raw] = [
        ("a", "0", 0, True, None),
        ("a", "x", 1, False, "train"),
        ("a", "x", 2, False, "train"),
        *between,
        ("a", "x", 12, False, "train"),
        ("b", "x", 0, False, "train"),
        ("b", "x", 1, False, "train"),
    ]
    logs = logs_of(events, plain)
    train = build(logs, learn_encoder(logs))["train"]
    assert train.blocks(8).tolist() == [0, 2, 3, 5]
    assert train.blocks(1).tolist() == [0, 1, 2, 3, 4, 5]
    batch, _ = train.batch(np.array([0, 2, 3]), np.array([2, 3, 5]))
    assert batch.history.shape == (3, 3, 1)
    assert (batch.stop - batch.start).tolist() == [1, 1, 3, 0, 0]


def test_batches_mix_users(shop_sets: dict[str, Dataset]) -> None:
    """A shuffled batch holds the impressions of most users, not of one after the other."""
    train = shop_sets["train"]
    for begin, end in train.plan(64, 4, 0)[:-1]:
        _, at = train.batch(begin, end)
        assert len(set(train.user[at])) > 8


def test_n_j_counts_the_samples_in_which_a_row_occurs(
    shop_logs: Logs, shop_sets: dict[str, Dataset]
) -> None:
    """Each row of each table against a loop over the training samples, repeats counting once."""
    schema: Schema = shop_logs.schema
    train = shop_sets["train"]
    expected = {name: np.zeros(t.size) for name, t in train.encoder.tables.items()}
    for i in range(len(train)):
        held: dict[str, set[int]] = {name: set() for name in expected}
        rows: list[tuple[Any, np.ndarray]] = [
            ("item", train.behaviours[train.start[i] : train.stop[i]]),
            ("item", train.item[[i]]),
            ("user", train.users[[train.user[i]]]),
            ("ad", train.ad[[i]]),
            ("context", train.context[[i]]),
        ]
        for group, array in rows:
            for field in schema.group(group):
                held[field.table] |= set(array[:, schema.columns(group)[field.name]].ravel())
        for name, found in held.items():
            expected[name][sorted(found)] += 1
    for name, counts in train.occurrences().items():
        np.testing.assert_array_equal(counts[1:], expected[name][1:], err_msg=name)


def test_ids_are_learnt_from_training_events_alone(
    shop_logs: Logs, shop_encoder: Encoder, plain: Path
) -> None:
    """An id of validation and test impressions alone is unknown; so is one seen too rarely."""
    events: list[Raw] = [
        ("u", "bought", 0, True, None),
        ("u", "shown", 1, False, "train"),
        ("u", "later", 2, True, "validation"),
        ("u", "last", 3, True, "test"),
    ]
    encoder = learn_encoder(logs_of(events, plain))
    names = np.array([key(n) for n in ("bought", "shown", "later", "last", "x")], np.uint64)
    rows = encoder.tables["item_id"].rows(names)
    assert sorted(rows[:2]) == [FIRST, FIRST + 1]
    assert rows[2:].tolist() == [OOV] * 3

    split, behaviour = pl.col("split"), pl.col("behaviour")
    seen = shop_logs.events.filter((split == "train") | (split.is_null() & behaviour))
    counts = dict(seen["item_id"].value_counts().rows())
    assert {count < 3 for count in counts.values()} >= {False}
    for item in shop_logs.events["item_id"].unique():
        known = shop_encoder.tables["item_id"].rows(np.array([key(item)], np.uint64))[0] != OOV
        assert known == (counts.get(item, 0) >= 3)


def test_items_and_users_that_no_table_has_are_encoded(
    shop_logs: Logs, shop_encoder: Encoder, shop_sets: dict[str, Dataset]
) -> None:
    """Such an item keeps its id's row with its other fields missing; such a user is all missing."""
    lost = set(shop_logs.events["item_id"]) - set(shop_logs.items["item_id"])
    assert lost
    rows, known = shop_encoder.items(np.array([key(item) for item in lost], np.uint64))
    assert not known.any()
    assert (rows[:, 0] >= FIRST).all()
    assert not rows[:, 1:].any()
    train = shop_sets["train"]
    order = shop_logs.events["user_id"].unique(maintain_order=True).to_list()
    for user in ("0", "1"):
        assert not train.users[order.index(user)].any()

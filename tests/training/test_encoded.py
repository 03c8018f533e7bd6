"""Encoded logs: the same impressions in memory and in shards."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.contract.encode import Encoder
from tests.training.test_chunks import GROUP, in_row_groups
from training.chunks import Chunks
from training.dataset import Dataset
from training.encoded import Shards, ahead, in_parts
from training.logs import SPLITS, Logs

ALL = 10_000  # events: more than the shop has
ABOUT = {"logs": "a digest", "options": [8]}


@pytest.fixture(scope="module")
def chunks(shop_logs: Logs, tmp_path_factory: pytest.TempPathFactory) -> Chunks:
    return Chunks(in_row_groups(shop_logs, tmp_path_factory.mktemp("shop")), events=GROUP)


def test_chunks_in_memory_are_the_whole_logs(
    shop_sets: dict[str, Dataset], chunks: Chunks, shop_encoder: Encoder, tmp_path: Path
) -> None:
    """Bit for bit, and nothing is written."""
    found = in_parts(chunks, shop_encoder, tmp_path / "shards", ALL, ABOUT)
    for split in SPLITS:
        data = found[split]
        assert isinstance(data, Dataset)
        for field in fields(Dataset)[1:]:
            one, two = (getattr(each, field.name) for each in (data, shop_sets[split]))
            assert one.dtype == two.dtype
            assert np.array_equal(one, two), field.name
    assert not (tmp_path / "shards").exists()


@pytest.mark.parametrize("in_chunks", [True, False])
@pytest.mark.parametrize("shard", [450, 60])
def test_shards_hold_the_same_impressions(
    shop_logs: Logs,
    shop_sets: dict[str, Dataset],
    chunks: Chunks,
    shop_encoder: Encoder,
    tmp_path: Path,
    shard: int,
    in_chunks: bool,
) -> None:
    """Each once, with its history, user and label; no user is in two shards."""
    logs = chunks if in_chunks else shop_logs
    found = in_parts(logs, shop_encoder, tmp_path, shard, ABOUT)
    numbers = range(-(-len(shop_logs) // shard))
    seen_in: dict[str, int] = {}
    for split in SPLITS:
        whole, data = shop_sets[split], found[split]
        assert isinstance(data, Shards)
        assert len(data) == len(whole) == sum(data.lengths)
        assert data.ones == whole.ones == tuple(whole.label.sum(0))
        events: list[int] = []
        for number, part in zip(numbers, data.parts(numbers), strict=True):
            assert len(part) == data.lengths[number]
            for at, event in enumerate(part.event.tolist()):
                there = int(np.searchsorted(whole.event, event))
                assert impression(part, at) == impression(whole, there)
                assert seen_in.setdefault(shop_logs.events["user_id"][event], number) == number
            assert np.all(np.diff(part.user) >= 0)
            events += part.event.tolist()
        assert sorted(events) == whole.event.tolist()
    assert len(set(seen_in.values())) > 1
    for name, count in found["train"].occurrences().items():
        assert np.array_equal(count, shop_sets["train"].occurrences()[name])


def impression(data: Dataset, at: int) -> dict[str, Any]:
    """All that is known of one."""
    return {
        "history": data.behaviours[data.start[at] : data.stop[at]].tolist(),
        "ts": data.ts[data.start[at] : data.stop[at]].tolist(),
        "user": data.users[data.user[at]].tolist(),
        **{name: getattr(data, name)[at].tolist() for name in ("item", "ad", "context", "label")},
    }


def test_shards_are_made_again_only_of_other_things(
    shop_logs: Logs, shop_encoder: Encoder, tmp_path: Path
) -> None:
    """What a killed training had encoded is used by the one that goes on."""

    def stamp(about: dict[str, Any]) -> int:
        in_parts(shop_logs, shop_encoder, tmp_path, 450, about)
        return (tmp_path / "0.behaviours").stat().st_mtime_ns

    first = stamp(ABOUT)
    assert stamp(ABOUT) == first
    other = stamp({**ABOUT, "logs": "another"})
    assert other > first
    (tmp_path / "encoded.json").unlink()  # as of one that was killed while it encoded
    assert stamp({**ABOUT, "logs": "another"}) > other


def test_a_shard_cut_short_is_named(shop_logs: Logs, shop_encoder: Encoder, tmp_path: Path) -> None:
    data = in_parts(shop_logs, shop_encoder, tmp_path, 450, ABOUT)["train"]
    path = tmp_path / "1.train.start"
    path.write_bytes(path.read_bytes()[:-8])
    parts = data.parts((0, 1))
    next(parts)
    with pytest.raises(OSError, match=r"1\.train\.start: expected \d+ rows; remove"):
        next(parts)


def test_the_next_is_read_while_one_is_used_and_no_more() -> None:
    """In order; the second job runs before the first result is done with, the third does not."""
    begun = [threading.Event() for _ in range(3)]

    def job(number: int) -> Callable[[], int]:
        def run() -> int:
            begun[number].set()
            return number

        return run

    results = ahead(map(job, range(3)))
    assert next(results) == 0
    assert begun[1].wait(60)
    assert not begun[2].is_set()
    assert list(results) == [1, 2]
    assert list(ahead([])) == []


def test_an_error_of_a_reading_thread_is_the_callers() -> None:
    def fail() -> int:
        raise OSError("the disk is gone")

    results = ahead([lambda: 1, fail])
    assert next(results) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(results)

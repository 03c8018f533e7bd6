"""The service yardstick: ours and REF's, as real processes, give the same probabilities."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bench import forms, load, memory, plots, servers, serving, tables, turns, world
from bench.graph import Exported
from bench.servers import Cores, Server
from bench.world import FIXED, LONG, MIXED, MIXES
from tests.support import redis_server

USERS = 20
Running = dict[str, Server]


@pytest.fixture(scope="module")
def running(exported: Exported) -> Iterator[Running]:
    redis_server()
    with serving.running(exported, USERS, MIXES, Cores.found()) as found:
        yield found


def test_both_give_the_same_probabilities(running: Running) -> None:
    """Padded and not, for short and long histories."""
    for mix in MIXES:
        assert serving.check(running, USERS, mix) <= serving.TOLERANCE


def test_unknown_ids_are_the_same_too(running: Running) -> None:
    """A user without a history, an item nobody knows."""
    request = world.Asked("nobody", ("1", "no such item", "2")).rows()
    found = {
        name: json.loads(load.closed(server.port, [request], 1).answers[0].body)["scores"]
        for name, server in running.items()
    }
    ours = [score["ctr"] for score in found[serving.OURS]]
    for scores in found.values():
        assert [score["ctr"] for score in scores] == pytest.approx(ours, abs=serving.TOLERANCE)


def test_rows_can_be_shown(running: Running, tmp_path: Path) -> None:
    """All rows are measured, their tables and plots made; what they say is not asserted."""
    plan = dataclasses.replace(
        serving.QUICK, users=USERS, turns=2, requests=8, open_seconds=0.2, overload_seconds=0.1
    )
    found = serving.measure(running, plan, lambda text: None)
    assert [row["server"] for row in found["saturation"][:3]] == [
        serving.padded(100),
        serving.TRIMMED,
        serving.OURS,
    ]
    assert all(row["errors"] == 0 for rows in found.values() for row in rows)
    assert all(row["per_second"]["median"] > 0 for rows in found.values() for row in rows)
    rows = forms.measure(running[serving.OURS], USERS, requests=6, turns=1)
    assert [row["form"] for row in rows] == ["rows", "rows, explain 3", "columns"]
    for table, of in (
        (tables.saturation, found["saturation"]),
        (tables.constant, found["open"]),
        (tables.forms, rows),
    ):
        assert table(of).row_count == len(of)
    plots.saturation(found["saturation"], tmp_path / "requests.png")
    plots.latency(found["open"], tmp_path / "latency.png")
    assert len(list(tmp_path.glob("*.png"))) == 2
    json.dumps([found, rows])


def test_memory_is_read_at_each_tenth(running: Running) -> None:
    """Before the requests that count and after each tenth of them."""
    rows = list(memory.measure(running[serving.OURS], USERS, 30, 5, lambda text: None, portion=7))
    assert [done for done, _ in rows] == [0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30]
    assert all(10 < mib < 10_000 for _, mib in rows)


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    """The end of its log is in the error."""
    command = servers.reference(tmp_path, "redis://127.0.0.1:1/0", 10, trim=True)
    with (
        pytest.raises(servers.ServerError, match=r"model\.onnx"),
        servers.running({"REF": command}, Cores.found().server),
    ):
        pass


def test_an_answer_without_history_is_not_good() -> None:
    """Nor is one that is no 200."""
    assert turns.is_good(load.Answer(200, b'{"degraded":null}'))
    assert not turns.is_good(load.Answer(200, b'{"degraded":"history_unavailable"}'))
    assert not turns.is_good(load.Answer(503, b""))


def test_lengths_are_those_of_the_mix() -> None:
    """Median, mean and 99th percentile of all users, and of any request list."""
    lengths = MIXED.lengths(10_000)
    assert np.median(lengths) == 20
    assert lengths.mean() == pytest.approx(25, abs=0.5)
    assert np.percentile(lengths, 99) == pytest.approx(98, abs=1)
    assert LONG.lengths(10_000).max() == 400
    assert set(FIXED.lengths(10).tolist()) == {50}
    drawn = world.draw(MIXED, 10_000, 3, 100, seed=1)
    of = lengths[[int(one.user.removeprefix("mixed-")) for one in drawn]]
    assert of.mean() == pytest.approx(25, abs=1)


def test_both_sides_are_asked_the_same() -> None:
    """The same seed gives the same users and candidates, distinct ones."""
    first, again = (world.draw(MIXED, 100, 50, 10, seed=3) for _ in range(2))
    assert first == again
    assert all(len(set(one.items)) == 50 for one in first)
    assert first[0].rows() != first[1].rows()

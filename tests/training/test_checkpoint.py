"""Checkpoints: a reader sees a whole one or none, whenever the writer is killed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Barrier

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kill import killed_before_step
from training import checkpoint
from training.group import Group, Span

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b.c": torch.tensor(7)}


def save(run: Path, step: int) -> None:
    tensors = {name: tensor + step for name, tensor in TENSORS.items()}
    checkpoint.save(run, step, tensors, {"step": step, "best": 0.5})


def whole(run: Path) -> int:
    """The step of the checkpoint there is, whose tensors and state are checked; 0 without one."""
    found = checkpoint.load(run)
    if found is None:
        return 0
    tensors, state = found
    assert state["best"] == 0.5
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        torch.testing.assert_close(tensors[name], tensor + state["step"])
    return int(state["step"])


def test_the_newest_checkpoint_is_the_only_one(tmp_path: Path) -> None:
    """Saving drops the older ones; removing drops all."""
    assert whole(tmp_path) == 0
    for step in (9, 10, 100):
        save(tmp_path, step)
        assert whole(tmp_path) == step
        assert [path.name for path in tmp_path.iterdir()] == [f"checkpoint-{step}"]
    checkpoint.remove(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_writer_killed_at_any_step_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """Killed before each of its steps: the old or the new one is there, and the next save works."""
    kill, seen = 0, set()
    while True:
        kill += 1
        run = tmp_path / str(kill)
        run.mkdir()
        save(run, 1)
        killed = killed_before_step(kill, lambda run=run: save(run, 2))
        seen.add(whole(run))
        save(run, 3)
        assert whole(run) == 3
        assert [path.name for path in run.iterdir()] == ["checkpoint-3"]
        if not killed:
            break
    assert seen == {1, 2}
    assert kill > 10


def test_a_removal_killed_at_any_step_leaves_a_whole_checkpoint_or_none(tmp_path: Path) -> None:
    """Half a checkpoint never looks like one."""
    kill, seen = 0, set()
    while True:
        kill += 1
        run = tmp_path / str(kill)
        run.mkdir()
        save(run, 1)
        killed = killed_before_step(kill, lambda run=run: checkpoint.remove(run))
        seen.add(whole(run))
        if not killed:
            break
    assert seen == {0, 1}
    assert kill > 3


class Threads(Group):
    """Threads in place of processes, which wait for each other."""

    def __init__(self, rank: int, size: int, others: Barrier) -> None:
        self.rank, self.size, self.others = rank, size, others

    def agree(self, work: Callable[[], None]) -> None:
        work()
        self.others.wait()


def cut(rows: int, size: int) -> list[Span]:
    """The rows of a table by process; the last ones may have none."""
    block = -(-rows // size)
    edges = [min(rank * block, rows) for rank in range(size + 1)]
    return [Span(*edge, rows) for edge in pairwise(edges)]


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 9), writers=st.integers(1, 4), readers=st.integers(1, 4))
def test_what_some_wrote_others_read(rows: int, writers: int, readers: int) -> None:
    """Whatever the number of each: all rows, each reader its own, and what is whole once."""
    table, whole = torch.arange(3.0 * rows).reshape(rows, 3), torch.tensor(7)
    others = Barrier(writers)

    def write(rank: int, run: Path) -> None:
        span = cut(rows, writers)[rank]
        tensors = {"t": table[span.first : span.last], "w": whole}
        spans = {"t": span} if writers > 1 else {}
        checkpoint.save(run, 1, tensors, {"step": 1}, Threads(rank, writers, others), spans)

    with TemporaryDirectory() as folder, ThreadPoolExecutor(writers) as pool:
        run = Path(folder)
        list(pool.map(write, range(writers), [run] * writers))
        for span in [Span(0, rows, rows), *cut(rows, readers)]:
            found = checkpoint.load(run, {"t": span})
            assert found is not None
            assert torch.equal(found[0]["t"], table[span.first : span.last])
            assert torch.equal(found[0]["w"], whole)
        found = checkpoint.load(run)
        assert found is not None
        assert torch.equal(found[0]["t"], table)

"""The state of a version on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.kill import killed_before_step
from training import state
from training.state import State, StateError
from training.vocabulary import Seen

SCHEMA = 'name = "toy"\n[[item]]\nname = "item_id"\n'
SEEN = {"item_id": Seen(np.asarray([3, 9], np.uint64), np.asarray([-1, 20_000]))}


def write(folder: Path, weight: float = 1.0) -> None:
    state.write(
        folder,
        schema_text=SCHEMA,
        model="din",
        options={"dim": 2, "head": [8]},
        seen=SEEN,
        weights={"a.weight": torch.full((4, 2), weight)},
        moments={"a.weight.step": torch.tensor(7), "a.weight.exp_avg": torch.ones(4, 2)},
    )


def test_what_was_written_is_read(tmp_path: Path) -> None:
    """Outline, weights and moments; again in the same place it replaces what was there."""
    write(tmp_path / "state", 5.0)
    write(tmp_path / "state")
    found = State.read(tmp_path / "state")
    assert found.digest == state.digest(tmp_path / "state")
    assert (found.outline.model, found.outline.options) == ("din", {"dim": 2, "head": [8]})
    assert found.outline.schema.name == "toy"
    assert found.outline.seen["item_id"].keys.tolist() == [3, 9]
    assert found.outline.seen["item_id"].day.tolist() == [-1, 20_000]
    assert torch.equal(found.weights["a.weight"], torch.ones(4, 2))
    assert set(found.moments) == {"a.weight.step", "a.weight.exp_avg"}
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


@pytest.mark.parametrize(
    "name", ["state.json", "schema.toml", "tensors.safetensors", "seen/item_id.npy"]
)
def test_a_changed_file_is_refused(tmp_path: Path, name: str) -> None:
    """Every bit counts."""
    write(tmp_path / "state")
    kept = state.keep(tmp_path / "state", tmp_path)
    path = tmp_path / state.STATES / kept / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(StateError):
        state.find(tmp_path, kept)


def test_states_are_kept_by_their_digest(tmp_path: Path) -> None:
    """The same one once; dropping leaves those that are asked for."""
    write(tmp_path / "one")
    write(tmp_path / "two", 2.0)
    one, again, two = (state.keep(tmp_path / n, tmp_path) for n in ("one", "one", "two"))
    assert one == again != two
    assert torch.equal(state.find(tmp_path, two).weights["a.weight"], torch.full((4, 2), 2.0))
    state.drop(tmp_path, {two})
    assert [path.name for path in (tmp_path / state.STATES).iterdir()] == [two]
    with pytest.raises(StateError, match=one):
        state.find(tmp_path, one)


def test_a_kill_leaves_no_half_of_one(tmp_path: Path) -> None:
    """Killed before any step of writing, what has the name of a state is whole."""
    for step in range(1, 200):
        folder = tmp_path / str(step) / "state"
        killed = killed_before_step(step, lambda folder=folder: write(folder))
        if folder.exists():
            assert State.read(folder).outline.model == "din"
        write(folder)
        State.read(folder)
        if not killed:
            return
    pytest.fail("never ran to its end")

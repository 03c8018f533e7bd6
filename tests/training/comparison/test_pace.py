"""How fast each model trains is tried before it does, and leaves nothing."""

from __future__ import annotations

from pathlib import Path

from training.comparison import pace
from training.comparison.entrants import enter
from training.comparison.pace import Pace
from training.fit import encode
from training.logs import Logs


def test_every_model_has_a_pace_but_one_that_cannot_train(shop_logs: Logs, tmp_path: Path) -> None:
    """Of each label once, counted as it goes; a rate that lets the loss burst is no error yet."""
    shop_logs.write(tmp_path)
    models = ["base", "DIN=din:attention=[6]", "burst=base:rate=1e30"]
    lineup = enter(tmp_path, models, None, ["size=64", "epochs=0.5"])
    encoded = encode(shop_logs, tmp_path, lambda *_: None)
    told = list[tuple[str, int, int]]()
    before = set(tmp_path.rglob("*"))
    found = pace.measure(lineup.entrants, encoded, lambda *each: told.append(each[:3]))
    assert told == [("time some steps", done, 3) for done in range(4)]
    assert found.keys() == {"base", "DIN", "burst"}
    for label in ("base", "DIN"):
        assert 0 < found[label].train < 1
        assert 0 < found[label].score < 1
    assert found["burst"] == Pace(0, 0)
    assert set(tmp_path.rglob("*")) == before


def test_nothing_left_to_train_needs_no_pace(shop_logs: Logs, tmp_path: Path) -> None:
    encoded = encode(shop_logs, tmp_path, lambda *_: None)
    assert pace.measure([], encoded, lambda *_: None) == {}

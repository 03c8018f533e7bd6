"""The one stage of a comparison: what went by, and what is left of all kinds of work."""

from __future__ import annotations

from training.comparison.work import GUESS, STAGE, Work


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_whole_is_what_went_by_and_what_is_left_of_every_kind() -> None:
    """A guess stands for what has not begun, and gives way to what the first ones took."""
    clock, told = Clock(), []
    units = {"train": 1000, "graph": 3, "turn": 10}
    work = Work(lambda *given: told.append(given), units, clock)
    guessed = 3 * GUESS["graph"] + 10 * GUESS["turn"]
    clock.now += 20
    work.done("train", 500, {"loss": 0.5})
    assert told[-1] == (STAGE, 20, round(20 + 20 + guessed), {"loss": 0.5})
    work.skip("train", 500)
    assert told[-1] == (STAGE, 20, round(20 + guessed), {})
    clock.now += 30
    work.done("graph")
    assert told[-1] == (STAGE, 50, round(50 + 2 * 30 + 10 * GUESS["turn"]), {})
    clock.now += 10
    work.done("graph", 2)  # 40 s for three
    clock.now += 4
    work.done("turn", 2)
    assert told[-1] == (STAGE, 64, 64 + 8 * 2, {})


def test_it_has_not_ended_before_its_end() -> None:
    """Not even where what is left is no second's work; then done and whole are the same."""
    clock, told = Clock(), []
    work = Work(lambda *given: told.append(given), {"turn": 2}, clock)
    work.done("turn")
    assert told[-1] == (STAGE, 0, 1, {})
    clock.now += 7
    work.end()
    assert told[-1] == (STAGE, 7, 7, {})

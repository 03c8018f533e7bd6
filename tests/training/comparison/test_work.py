"""The one stage of a comparison: what went by, and what is left of all kinds of work."""

from __future__ import annotations

from training.comparison.work import GUESS, STAGE, Training, Work


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_whole_is_what_went_by_and_what_is_left_of_every_kind() -> None:
    """A guess stands for what has not begun, and gives way to what the first ones took."""
    clock, told = Clock(), []
    units = {"train": 1000, "train slow": 100, "graph": 3, "turn": 10}
    guess = GUESS | {"train": 1.0, "train slow": 0.5}
    work = Work(lambda *given: told.append(given), units, guess, clock)
    guessed = 3 * GUESS["graph"] + 10 * GUESS["turn"]
    clock.now += 20
    work.done("train", 500, {"loss": 0.5})
    assert told[-1] == (STAGE, 20, round(20 + 20 + 50 + guessed), {"loss": 0.5})
    work.skip("train slow", 100)
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
    work = Work(lambda *given: told.append(given), {"turn": 2}, GUESS, clock)
    work.done("turn")
    assert told[-1] == (STAGE, 0, 1, {})
    clock.now += 7
    work.end()
    assert told[-1] == (STAGE, 7, 7, {})


def test_a_run_tells_what_it_trained_on_and_scored() -> None:
    """What a run that goes on did before takes no time, validation begins anew each time, and what
    an early stop leaves undone is not waited for."""
    clock, told = Clock(), []
    units = {"train A": 200, "score A": 100, "train B": 10}
    guess = {"train A": 1.0, "score A": 0.5, "train B": 3.0}
    work = Work(lambda *given: told.append(given), units, guess, clock)
    training = Training(work, "A", {"train": 200, "score": 100})
    training("encode", 7, 9, {})
    assert told == []
    training("train", 100, 200, {"loss": 0.5})  # of which nothing was done now
    assert told[-1] == (STAGE, 0, 100 + 50 + 30, {"loss": 0.5})
    clock.now += 20
    training("train", 110, 200, {"loss": 0.4})
    assert told[-1] == (STAGE, 20, 20 + 180 + 50 + 30, {"loss": 0.4})
    clock.now += 10
    training("validate", 10, 20, {})
    training("validate", 20, 20, {})
    assert told[-1] == (STAGE, 30, 30 + 180 + 40 + 30, {})
    training("validate", 20, 20, {})  # the next one
    assert told[-1] == (STAGE, 30, 30 + 180 + 15 + 30, {})
    training.end()
    assert told[-1] == (STAGE, 30, 30 + 30, {})

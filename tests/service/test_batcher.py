"""The batcher on a stub: what is submitted is answered, once, by a call that may hold it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.batcher import MAX_MEMBERS, Batcher, Done
from service.errors import DeadlineExceeded, Overloaded, Stopped

FAR = 60.0


@dataclass(frozen=True)
class Piece:
    """An item of the stub: ``fate`` is what happens to it."""

    number: int
    work: int = 1
    group: str = "a"
    fate: str = "good"


class Bad(Exception):
    """What the stub raises for a bad piece."""


class Stub:
    """Answers a piece with its number; a gate can hold it in a call."""

    def __init__(self) -> None:
        self.calls: list[list[Piece]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def __call__(self, pieces: Sequence[Piece]) -> list[int]:
        self.calls.append(list(pieces))
        self.entered.set()
        assert self.gate.wait(120)
        for piece in pieces:
            if piece.fate == "bad":
                raise Bad(piece.number)
        return [piece.number for piece in pieces]

    @property
    def ran(self) -> set[int]:
        return {piece.number for call in self.calls for piece in call}


def total(pieces: Sequence[Piece]) -> int:
    return sum(piece.work for piece in pieces)


def batcher(
    stub: Any, *, merge_limit: int = 10, queue_limit: int = 10**6, workers: int = 1
) -> Batcher[Piece, int]:
    return Batcher(
        stub,
        cost=total,
        group=lambda piece: piece.group,
        merge_limit=lambda item: merge_limit,
        queue_limit=queue_limit,
        workers=workers,
    )


async def submit(queue: Batcher[Piece, int], piece: Piece, seconds: float = FAR) -> Done[int]:
    return await queue.submit(piece, asyncio.get_running_loop().time() + seconds)


async def held(stub: Stub, queue: Batcher[Piece, int], number: int = 0) -> asyncio.Task[Any]:
    """A first piece that occupies the only worker until the gate opens."""
    stub.gate.clear()
    first = asyncio.create_task(submit(queue, Piece(number)))
    while not stub.entered.is_set():
        await asyncio.sleep(0.001)
    return first


PIECES = st.lists(
    st.tuples(
        st.integers(1, 20),
        st.sampled_from("ab"),
        st.sampled_from(["good", "good", "good", "bad", "cancelled", "late"]),
    ),
    max_size=100,
)


@settings(max_examples=60, deadline=None)
@given(PIECES, st.integers(0, 30), st.integers(1, 3))
def test_each_piece_is_resolved_once_with_its_own_outcome(
    drawn: list[tuple[int, str, str]], merge_limit: int, workers: int
) -> None:
    """Whatever arrives, is cancelled, expires or fails: everyone gets exactly their own outcome."""
    stub = Stub()
    pieces = [Piece(at, *values) for at, values in enumerate(drawn, 1)]

    async def scenario() -> list[Any]:
        async with batcher(stub, merge_limit=merge_limit, workers=workers) as queue:
            tasks = [
                asyncio.create_task(submit(queue, piece, -1 if piece.fate == "late" else FAR))
                for piece in pieces
            ]
            await asyncio.sleep(0)
            for piece, task in zip(pieces, tasks, strict=True):
                if piece.fate == "cancelled":
                    task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert queue.queued == 0
            assert queue.alive
            return outcomes

    outcomes = asyncio.run(scenario())
    for piece, outcome in zip(pieces, outcomes, strict=True):
        if piece.fate == "good":
            assert isinstance(outcome, Done)
            assert outcome.answer == piece.number
        elif piece.fate == "bad":
            assert isinstance(outcome, Bad)
            assert outcome.args == (piece.number,)
        elif piece.fate == "late":
            assert isinstance(outcome, DeadlineExceeded)
            assert piece.number not in stub.ran
        else:
            assert isinstance(outcome, asyncio.CancelledError)
            assert piece.number not in stub.ran
    for call in stub.calls:
        assert len({piece.group for piece in call}) == 1
        assert len(call) == 1 or (total(call) <= merge_limit and len(call) <= MAX_MEMBERS)
    numbers = [piece.number for call in stub.calls for piece in call if piece.fate == "good"]
    in_bad_company = {
        p.number
        for call in stub.calls
        if len(call) > 1
        for p in call
        if any(other.fate == "bad" for other in call)
    }
    assert all(numbers.count(n) == (2 if n in in_bad_company else 1) for n in set(numbers))


def test_what_arrives_during_a_call_forms_the_next() -> None:
    """Small pieces that wait share one call, a large one runs alone, in the order of arrival."""
    stub = Stub()

    async def scenario() -> None:
        async with batcher(stub, merge_limit=5) as queue:
            first = await held(stub, queue)
            works = {1: 2, 2: 3, 3: 1, 4: 50, 5: 1}
            rest = [asyncio.create_task(submit(queue, Piece(n, w))) for n, w in works.items()]
            await asyncio.sleep(0)
            assert queue.queued == 57
            stub.gate.set()
            done = [await task for task in (first, *rest)]
            assert [each.answer for each in done] == [0, 1, 2, 3, 4, 5]
            assert [each.members for each in done] == [1, 2, 2, 1, 1, 1]
            assert done[1].queue_seconds > 0
            assert done[1].run_seconds >= 0

    asyncio.run(scenario())
    assert [[piece.number for piece in call] for call in stub.calls] == [[0], [1, 2], [3], [4], [5]]


def test_groups_never_share_a_call() -> None:
    """Pieces of different groups that would fit one call are run in calls of their own."""
    stub = Stub()

    async def scenario() -> None:
        async with batcher(stub) as queue:
            first = await held(stub, queue)
            rest = [
                asyncio.create_task(submit(queue, Piece(n, 1, g))) for n, g in ((1, "a"), (2, "b"))
            ]
            await asyncio.sleep(0)
            stub.gate.set()
            await asyncio.gather(first, *rest)

    asyncio.run(scenario())
    assert [[piece.number for piece in call] for call in stub.calls] == [[0], [1], [2]]


def test_a_bad_member_fails_alone() -> None:
    """A call of several that fails is made anew for each, so that the good ones are answered."""
    stub = Stub()

    async def scenario() -> None:
        async with batcher(stub) as queue:
            first = await held(stub, queue)
            fates = {1: "good", 2: "bad", 3: "good"}
            rest = [asyncio.create_task(submit(queue, Piece(n, fate=f))) for n, f in fates.items()]
            await asyncio.sleep(0)
            stub.gate.set()
            await first
            one, two, three = await asyncio.gather(*rest, return_exceptions=True)
            assert isinstance(two, Bad)
            assert isinstance(one, Done)
            assert isinstance(three, Done)
            assert (one.answer, three.answer) == (1, 3)

    asyncio.run(scenario())


def test_a_call_with_too_few_answers_is_an_error() -> None:
    """Nobody gets another one's answer when a run returns fewer than it was given."""

    async def scenario() -> None:
        async with batcher(lambda pieces: []) as queue:
            with pytest.raises(RuntimeError, match="0 answers for 1 items"):
                await submit(queue, Piece(1))

    asyncio.run(scenario())


def test_too_much_waiting_work_is_refused_before_the_queue() -> None:
    """Beyond the limit a piece is refused at once, and room is there again when one leaves."""
    stub = Stub()

    async def scenario() -> None:
        async with batcher(stub, queue_limit=10) as queue:
            first = await held(stub, queue)
            waiting = asyncio.create_task(submit(queue, Piece(1, 8)))
            await asyncio.sleep(0)
            with pytest.raises(Overloaded) as refused:
                await submit(queue, Piece(2, 3))
            assert refused.value.retry_after
            waiting.cancel()
            await asyncio.wait([waiting])
            assert queue.queued == 0
            last = asyncio.create_task(submit(queue, Piece(3, 3)))
            await asyncio.sleep(0)
            stub.gate.set()
            assert (await last).answer == 3
            await first

    asyncio.run(scenario())
    assert stub.ran == {0, 3}


def test_one_piece_larger_than_the_limit_is_taken_when_nothing_waits() -> None:
    """A piece that could never fit is not refused for ever."""

    async def scenario() -> None:
        async with batcher(Stub(), queue_limit=10) as queue:
            assert (await submit(queue, Piece(1, 1000))).answer == 1

    asyncio.run(scenario())


def test_a_deadline_that_passes_in_the_queue_spares_the_run() -> None:
    """Who waited too long is told so while the worker is still busy, and is never run."""
    stub = Stub()

    async def scenario() -> None:
        async with batcher(stub) as queue:
            first = await held(stub, queue)
            with pytest.raises(DeadlineExceeded):
                await submit(queue, Piece(1), 0.02)
            stub.gate.set()
            await first

    asyncio.run(scenario())
    assert stub.ran == {0}


def test_workers_run_side_by_side() -> None:
    """Two workers are in a call at the same time."""
    meeting = threading.Barrier(2, timeout=30)

    def run(pieces: Sequence[Piece]) -> list[int]:
        meeting.wait()
        return [piece.number for piece in pieces]

    async def scenario() -> None:
        async with batcher(run, merge_limit=0, workers=2) as queue:
            done = await asyncio.gather(*(submit(queue, Piece(n)) for n in (1, 2)))
            assert [each.answer for each in done] == [1, 2]

    asyncio.run(scenario())


def test_a_dead_loop_fails_its_waiters_and_takes_no_more() -> None:
    """When the loop itself breaks nobody hangs, and the batcher says that it is not alive."""
    stub = Stub()

    def broken(pieces: Sequence[Piece]) -> int:
        if len(pieces) > 1:
            raise ZeroDivisionError
        return 1

    async def scenario() -> None:
        queue: Batcher[Piece, int] = Batcher(
            stub,
            cost=broken,
            group=lambda p: p.group,
            merge_limit=lambda p: 9,
            queue_limit=99,
            workers=1,
        )
        async with queue:
            first = await held(stub, queue)
            rest = [asyncio.create_task(submit(queue, Piece(n))) for n in (1, 2)]
            await asyncio.sleep(0)
            stub.gate.set()
            outcomes = await asyncio.gather(first, *rest, return_exceptions=True)
            assert [type(each) for each in outcomes[1:]] == [Stopped, Stopped]
            assert not queue.alive
            with pytest.raises(Stopped):
                await submit(queue, Piece(3))

    asyncio.run(scenario())


def test_closing_fails_who_still_waits() -> None:
    """A batcher that is closed leaves no one hanging."""
    stub = Stub()

    async def scenario() -> None:
        async with batcher(stub) as queue:
            first = await held(stub, queue)
            waiting = asyncio.create_task(submit(queue, Piece(1)))
            await asyncio.sleep(0)
            asyncio.get_running_loop().call_later(0.05, stub.gate.set)
        outcomes = await asyncio.gather(first, waiting, return_exceptions=True)
        assert [type(each) for each in outcomes] == [Stopped, Stopped]

    asyncio.run(scenario())
    assert stub.ran == {0}

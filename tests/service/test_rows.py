"""The row form's answer: text that is put together, the same as what a JSON writer makes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from service.rows import write
from service.wire import Answer, Ask, Because

TEXTS = st.text(st.characters(codec="utf-8"), max_size=5)
IDS = st.one_of(
    TEXTS, st.sampled_from([",", '","', "\\", "\n", "%s"]), st.integers(-(2**63), 2**64 - 1)
)
TASKS = st.sampled_from([("ctr",), ("click", "buy"), ("ctr", "cvr"), ("status", 'a"b', "item_id")])


@st.composite
def answers(draw: st.DrawFn) -> tuple[Ask, Answer]:
    """Any candidates, tasks, unknown items and reasons."""
    ids, tasks = draw(st.lists(IDS, min_size=1, max_size=6)), draw(TASKS)
    seed = draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    because = None
    if draw(st.booleans()):
        names = draw(st.lists(st.none() | IDS, min_size=1, max_size=4))
        shape = len(ids), draw(st.integers(0, 3))
        weight = generator.normal(size=shape).astype(np.float32)
        places = generator.integers(0, len(names), shape)
        because = Because(places, weight, dict(enumerate(names)))
    answer = Answer(
        request_id="r",
        model="m",
        version=1,
        history_length=4,
        degraded=None,
        tasks=tasks,
        probability=generator.random((len(ids), len(tasks))),
        unknown=np.flatnonzero(generator.random(len(ids)) < 0.3),
        because=because,
        timing_ms={"store": 0.1, "queue": 0.0, "model": 1.5, "total": 2.0},
    )
    return Ask(user="u", candidates=ids), answer


def expected(asked: Ask, answer: Answer) -> list[dict[str, Any]]:
    """The scores as objects."""
    scores: list[dict[str, Any]] = []
    for at, item in enumerate(asked.candidates):
        values = answer.probability[at].tolist()
        status = "unknown_item" if at in answer.unknown else "known"
        score = {"item_id": item, "ctr": values[0], "status": status}
        for name, value in zip(answer.tasks, values, strict=True) if len(values) > 1 else ():
            score.setdefault(name, value)
        if answer.because is not None:
            reasons = zip(answer.because.behaviour[at], answer.because.weight[at], strict=True)
            score["because"] = [
                {"item_id": answer.because.names[place], "weight": weight}
                for place, weight in reasons
            ]
        scores.append(score)
    return scores


@given(answers())
def test_an_answer_is_what_its_objects_would_be(drawn: tuple[Ask, Answer]) -> None:
    """Whatever ids, tasks and reasons there are, each field is there once, in its place."""
    asked, answer = drawn
    found = json.loads(write(asked, answer))
    assert list(found) == [*answer.envelope(), "scores", "timing_ms"]
    scores = found["scores"]
    for score in scores:
        for reason in score.get("because", ()):
            reason["weight"] = np.float32(reason["weight"])
    assert [list(each.items()) for each in scores] == [
        list(each.items()) for each in expected(asked, answer)
    ]

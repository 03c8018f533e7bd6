"""DSIN against its equations in numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.contract.batch import Batch
from model.dsin import DSINConfig, sessions
from model.network import SchemaLacks
from tests.model import interest_by_hand, nets
from tests.model.interest_by_hand import Array, Formula, Weights, sigmoid, softmax
from tests.model.test_networks import interest_of


def normalised(of: Weights, name: str, x: Array) -> Array:
    gap = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
    return gap * of[f"{name}.weight"] + of[f"{name}.bias"]


def block(of: Weights, name: str, x: Array, heads: int, reach: int) -> Array:
    """Self-attention and feed-forward layer with residuals; with ``reach`` none looks ahead."""
    q, k, v = (x @ w.T for w in np.split(of[f"{name}.inputs.weight"], 3))
    size = x.shape[1] // heads
    found = []
    for at in range(len(x)):
        others = range(at + 1 if reach else len(x))
        joined = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            score = [
                q[at, part] @ k[j, part] / np.sqrt(size)
                + (of[f"{name}.distance"][min(at - j, reach - 1), head] if reach else 0)
                for j in others
            ]
            joined.append(softmax(np.array(score)) @ v[: len(score), part])
        y = normalised(
            of, f"{name}.attended", x[at] + of[f"{name}.mix.weight"] @ np.concatenate(joined)
        )
        up = of[f"{name}.up.weight"] @ y + of[f"{name}.up.bias"]
        up = np.where(up > 0, up, 0.01 * up)
        down = of[f"{name}.down.weight"] @ up + of[f"{name}.down.bias"]
        found.append(normalised(of, f"{name}.fed", y + down))
    return np.array(found)


def lstm(of: Weights, name: str, xs: list[Array]) -> list[Array]:
    """Equation 6, without the peepholes that torch does not have either."""
    w, u = (np.split(of[f"{name}.weight_{side}_l0"], 4) for side in ("ih", "hh"))
    b, c = (np.split(of[f"{name}.bias_{side}_l0"], 4) for side in ("ih", "hh"))
    h, cell, found = np.zeros(6), np.zeros(6), []
    for x in xs:
        i, f, g, o = (w[n] @ x + b[n] + u[n] @ h + c[n] for n in range(4))
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(cell)
        found.append(h)
    return found


def divided(ts: Array, gap: int) -> list[list[int]]:
    """The places of the behaviours of each session."""
    found: list[list[int]] = []
    for at, time in enumerate(ts):
        if at and time - ts[at - 1] <= gap:
            found[-1].append(at)
        else:
            found.append([at])
    return found


def interest(config: DSINConfig) -> Formula:
    """Division, bias encoding, self-attention and mean, Bi-LSTM, and two activations."""

    def formula(of: Weights, e: Array, ts: Array, q: Array) -> Array:
        alone = []
        sessions = divided(ts, 10)
        for k, session in enumerate(sessions):
            biased = np.array(
                [
                    e[at]
                    + of["of_session"][len(sessions) - 1 - k]
                    + of["of_place"][len(session) - 1 - t]
                    + of["of_unit"]
                    for t, at in enumerate(session)
                ]
            )
            alone.append(block(of, "block", biased, config.heads, reach=0).mean(0))
        forwards = lstm(of, "forwards", alone)
        backwards = lstm(of, "backwards", alone[::-1])[::-1]
        context = [f + b for f, b in zip(forwards, backwards, strict=True)]
        found = []
        for name, vectors in (("alone", alone), ("in_context", context)):
            score = [x @ of[f"{name}.weight.weight"] @ q for x in vectors]
            found.append(softmax(np.array(score)) @ np.array(vectors))
        return np.concatenate(found)

    return formula


def timed(pauses: list[int]) -> Batch:
    """A batch whose users all paused so long, in turn, before each behaviour but the first."""
    batch = nets.batch(whole=True)
    return replace(batch, ts=np.cumsum([[0, *pauses]] * batch.users, 1))


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("variant", ["dsin", "dsin heads"])
def test_the_interest_is_that_of_sessions_alone_and_in_context(variant: str, whole: bool) -> None:
    """A candidate at a time; several numbers of sessions, of several lengths."""
    config = nets.config(variant)
    assert isinstance(config, DSINConfig)
    batch = nets.batch(candidates=20, whole=whole)
    seen = [batch.ts[u, i:j] for u, i, j in zip(batch.owner, batch.start, batch.stop, strict=True)]
    every = [divided(ts, 10) for ts in seen]
    assert len({len(each) for each in every}) > 2
    assert len({len(session) for each in every for session in each}) > 2
    interest_by_hand.holds(nets.network(variant), batch, interest(config))


@pytest.mark.parametrize(
    "pauses", [[0, 0, 0, 0, 0], [11, 11, 11, 11, 11], [10, 11, 0, 10, 99], [0, 0, 11, 0, 0]]
)
def test_sessions_of_any_number_and_length(pauses: list[int]) -> None:
    """All in one, each alone, and between."""
    config = nets.config("dsin")
    assert isinstance(config, DSINConfig)
    interest_by_hand.holds(nets.network("dsin"), timed(pauses), interest(config))


@given(
    st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=20).map(sorted),
    st.integers(0, 2**20),
)
def test_a_session_ends_with_a_longer_pause(ts: list[int], gap: int) -> None:
    """A pause just as long as the gap ends none, nor do behaviours of one time."""
    for times in (ts, [ts[0] + gap * at for at in range(3)]):
        expected = np.repeat(np.arange(len(divided(times, gap))), [*map(len, divided(times, gap))])
        assert sessions(torch.tensor([times]), gap).tolist() == [expected.tolist()]
    assert sessions(torch.tensor([[ts[0], ts[0] + gap + 1]]), gap).tolist() == [[0, 1]]


@pytest.mark.parametrize("dense", [False, True])
def test_only_sessions_matter_of_times(dense: bool) -> None:
    """Neither when it all happened, nor how long a pause was on its side of the gap."""
    network, batch = nets.network("dsin"), timed([0, 10, 11, 3, 40])
    expected = nets.logits(network, batch, dense)
    for same in (replace(batch, ts=batch.ts - 2**40), timed([4, 7, 5000, 10, 11])):
        torch.testing.assert_close(nets.logits(network, same, dense), expected, rtol=0, atol=1e-12)
    for other in ([0, 11, 11, 3, 40], [0, 10, 10, 3, 40]):
        assert abs(nets.logits(network, timed(other), dense) - expected).max() > 1e-3


def test_what_is_longer_ago_than_a_term_has_that_of_the_oldest() -> None:
    """More sessions than the history that a model was made for."""
    network = nets.network("dsin")
    behaviours = {"history": np.full((1, 9, 6), 3), "ts": np.arange(9)[None] * 11}
    batch = replace(
        nets.batch(users=1, candidates=1), **behaviours, start=np.array([0]), stop=np.array([9])
    )
    terms = np.array([5, 5, 5, 5, 4, 3, 2, 1, 0])
    config = nets.config("dsin")
    assert isinstance(config, DSINConfig)

    def clamped(of: Weights, e: Array, ts: Array, q: Array) -> Array:
        more = {**of, "of_session": of["of_session"][terms[::-1]]}
        return interest(config)(more, e, ts, q)

    (expected,) = interest_by_hand.interests(network, batch, clamped)
    for dense in (False, True):
        found = interest_of(network, batch, dense)[0]
        torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-10)


def test_a_schema_without_a_gap_has_no_sessions() -> None:
    """The error says what it lacks."""
    schema = replace(nets.SCHEMA, session_gap=None)
    with pytest.raises(SchemaLacks, match="the schema has no session_gap, the pause that ends"):
        nets.config("dsin").build(schema, nets.SIZES)

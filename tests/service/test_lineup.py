"""The lineup: a user always falls on the same side."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from model.contract.repository import Repository
from service.engine import OnnxEngine
from service.lineup import Lineup, place
from service.verify import Version, verify
from tests.support import ROOT, publish_toy

USERS = [f"user {n}" for n in range(20_000)]


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> list[Version]:
    root = tmp_path_factory.mktemp("repository")
    numbers = [publish_toy(root, bias=float(n)) for n in range(3)]
    repository = Repository(root, "toy")
    return [verify(repository, n, lambda graph: OnnxEngine.open(graph, "cpu")) for n in numbers]


def canaries(lineup: Lineup) -> set[str]:
    return {user for user in USERS if lineup.pick(user) is lineup.canary}


def test_a_share_of_the_users_is_the_canarys(versions: list[Version]) -> None:
    """As many as the share says, none at 0, all at 1."""
    one, two, _ = versions
    for share in (0.0, 0.01, 0.1, 0.5, 1.0):
        found = len(canaries(Lineup(one, canary=two, canary_share=share))) / len(USERS)
        assert found == pytest.approx(share, abs=4 * (share * (1 - share) / len(USERS)) ** 0.5)
    assert canaries(Lineup(one)) == set()


def test_a_larger_share_keeps_the_users_of_a_smaller_one(versions: list[Version]) -> None:
    """And another canary has the same users: a user's side is the user's own."""
    one, two, three = versions
    tenth = canaries(Lineup(one, canary=two, canary_share=0.1))
    assert tenth < canaries(Lineup(one, canary=three, canary_share=0.2))
    assert tenth == canaries(Lineup(two, canary=three, canary_share=0.1))


def test_another_process_puts_a_user_on_the_same_side() -> None:
    """Sides do not depend on the hash seed of a process."""
    program = "from service.lineup import place; print([place('a', f'{n}') for n in range(9)])"
    out = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == str([place("a", f"{n}") for n in range(9)])


def test_sides_have_nothing_to_do_with_other_hashes() -> None:
    """The places of users under two salts do not correlate."""
    one, two = (np.array([place(salt, user) for user in USERS]) for salt in ("one", "two"))
    assert abs(np.corrcoef(one, two)[0, 1]) < 4 / len(USERS) ** 0.5
    assert len({*one}) == len(USERS)
    assert one.min() >= 0
    assert one.max() < 1


def test_a_share_of_the_requests_is_shadowed(versions: list[Version]) -> None:
    """By the request, not by the user."""
    one, two, _ = versions
    lineup = Lineup(one, shadow=two, shadow_share=0.25)
    found = [lineup.shadow_for(user) for user in USERS]
    assert set(found) == {None, two}
    assert found.count(two) / len(USERS) == pytest.approx(0.25, abs=0.02)
    assert Lineup(one).shadow_for("r") is None


def test_lineups_differ_by_versions_and_by_shares(versions: list[Version], tmp_path: Path) -> None:
    """The same number loaded anew is another version, and a canary that is started again another
    canary."""
    one, two, three = versions
    lineup = Lineup(one, two, 0.1, "then", three, 0.2)
    assert lineup.same(Lineup(one, two, 0.1, "then", three, 0.2))
    assert lineup.versions() == [one, two, three]
    others = [
        Lineup(two, one, 0.1, "then", three, 0.2),
        Lineup(one, two, 0.2, "then", three, 0.2),
        Lineup(one, two, 0.1, "now", three, 0.2),
        Lineup(one, two, 0.1, "then", three, 0.3),
        Lineup(one, two, 0.1, "then"),
        None,
    ]
    assert not any(lineup.same(other) for other in others)

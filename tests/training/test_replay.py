"""Replay: what was logged is scored again; a planted skew is found and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from model.contract import bundle
from model.contract.encode import Encoder
from model.contract.log import Entry, Event, Scored
from model.contract.repository import Repository
from tests.support import TOY
from tests.training.collecting import collect
from tests.training.live import MORNING, Live, base_logs
from training.__main__ import app
from training.logs import LogsError
from training.replay import Skew, replay

Alter = Callable[[list[Entry]], list[Entry]]
LAST = "r29"


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Entry]]:
    """A repository, base logs, and the entries of 30 requests with their events."""
    folder = tmp_path_factory.mktemp("played")
    logs = base_logs(folder / "base", TOY)
    logs.write(folder / "base")
    live, draw = Live.start(folder / "repository", logs), np.random.default_rng(5)
    for step in range(30):
        logged = len(live.entries)
        ts, user = MORNING + 10 * step, f"u{step % 3}"
        candidates = [f"i{n}" for n in draw.choice(60, 4, replace=False)]
        live.score(
            f"r{step}",
            user,
            candidates,
            ts,
            profile={"gender": "F", "income": float(step)},
            context={"hour": step % 24},
            columns={"price": [1.5, None, None, 0.5]},
        )
        for item in candidates[:2]:
            live.event(user, item, "impression", ts, f"r{step}")
            live.event(user, item, "click", ts + int(draw.integers(3)), rating=str(step % 5 + 1))
        live.event(user, candidates[0], "conversion", ts + 1, rating="5")
        if step % 3 == 0:  # logged when all this had come already
            live.entries.append(live.entries.pop(logged))
        if step % 4 == 0:
            live.event(user, f"i{step}", "click", ts - 15)
    live.score("given", "u0", ["i1"], MORNING + 300, history=[{"item_id": "i9", "ts": 1}])
    live.score("lost", "u0", ["i1"], MORNING + 300, degraded="history_unavailable")
    live.score("fresh", "u7", ["i1"], MORNING + 300)
    return folder, live.entries


def replayed(
    played: tuple[Path, list[Entry]], folder: Path, alter: Alter = list, **options: Any
) -> Skew:
    """The replay of altered entries."""
    shutil.copytree(played[0] / "base", folder / "base")
    collected = collect(folder, alter(played[1]))
    return replay(collected, Repository(played[0] / "repository", "toy"), **options)


def change(request: str, **changes: Any) -> Alter:
    """Another record of one request's score."""

    def altered(entries: list[Entry]) -> list[Entry]:
        return [
            replace(each, **changes)
            if isinstance(each, Scored) and each.request_id == request
            else each
            for each in entries
        ]

    return altered


def test_what_is_served_is_what_is_rebuilt(
    played: tuple[Path, list[Entry]], tmp_path: Path
) -> None:
    """Ties, repeats, late comers, new users, histories that were given or lost: no skew."""
    found = replayed(played, tmp_path)
    assert found.first is None
    assert (found.requests, found.skipped) == (33, {})
    groups = {"user.gender", "user.income", "item.item_id", "item.genre", "ad.price"}
    groups |= {"context.hour", "history.item_id", "history.genre", "history.rating"}
    assert set(found.fields) == groups | {"history (length)", "history (records)"}
    assert not any(found.fields.values())
    assert found.scores["ctr"].largest < 1e-6
    assert found.scores["ctr"].requests == 0


def test_a_user_field_that_was_served_otherwise_is_named(
    played: tuple[Path, list[Entry]], tmp_path: Path
) -> None:
    """In that request, and in its score."""
    found = replayed(played, tmp_path, change(LAST, user={"gender": "M", "income": 29.0}))
    assert found.first == {"request_id": LAST, "version": 1, "differs": "user.gender"}
    assert {name for name, count in found.fields.items() if count} == {"user.gender"}
    assert found.fields["user.gender"] == 1
    assert found.scores["ctr"].requests == 1


def test_a_behaviour_that_was_not_collected_is_found(
    played: tuple[Path, list[Entry]], tmp_path: Path
) -> None:
    """The requests that had seen it have another history; those before it have not."""

    def without(entries: list[Entry]) -> list[Entry]:
        clicks = [e for e in entries if isinstance(e, Event) and e.action == "click"]
        gone = next(e for e in clicks if e.user_id == "u1" and e.ts > MORNING + 200)
        return [e for e in entries if e is not gone]

    found = replayed(played, tmp_path, without)
    assert found.first is not None
    assert found.first["differs"] == "history.item_id"
    assert int(found.first["request_id"][1:]) > 20
    assert 0 < found.fields["history (records)"] < 5
    assert not any(n for name, n in found.fields.items() if not name.startswith("history"))


def test_a_history_that_the_store_had_lost_is_found(
    played: tuple[Path, list[Entry]], tmp_path: Path
) -> None:
    """The records that it still had are right, but the log has more."""
    scored = next(e for e in played[1] if isinstance(e, Scored) and e.request_id == LAST)
    live = Live(Repository(played[0] / "repository", "toy").open(1), 1)
    cut = live.score(LAST, scored.user_id, scored.candidates, MORNING + 290, history=[])
    changes = {"history": replace(cut.history, raw=None), "probability": cut.probability}
    changes |= {"user": {}, "context": {}, "columns": {}, "rows": cut.rows}
    found = replayed(played, tmp_path, change(LAST, **changes))
    assert found.first == {"request_id": LAST, "version": 1, "differs": "history (length)"}
    assert sum(found.fields.values()) == 1


def test_an_item_of_another_category_is_named(
    played: tuple[Path, list[Entry]], tmp_path: Path
) -> None:
    """As when a version was rebuilt with another catalogue under the same number."""
    first = Repository(played[0] / "repository", "toy").open(1)
    catalogue = first.encoder.catalogue
    rows = catalogue.rows.copy()
    rows[:, 1] = np.roll(rows[:, 1], 1)
    other = Encoder(first.schema, first.encoder.tables, replace(catalogue, rows=rows))
    batch = bundle.encode_golden(other, first.golden.requests)
    again = Repository(tmp_path / "again", "toy")
    again.publish(
        lambda folder: bundle.write(
            folder,
            schema_text=TOY,
            encoder=other,
            graph=first.graph.read_bytes(),
            golden=replace(first.golden, batch=batch),
            metrics={},
            lineage={},
        )
    )
    shutil.copytree(played[0] / "base", tmp_path / "base")
    found = replay(collect(tmp_path, played[1]), again)
    assert found.first is not None
    assert found.first["differs"] == "item.genre"
    assert found.fields["item.item_id"] == 0
    assert found.fields["history.genre"] > 0


def test_another_probability_is_found_where_every_field_agrees(
    played: tuple[Path, list[Entry]], tmp_path: Path
) -> None:
    """Beyond the tolerance, and by how much."""
    scored = next(e for e in played[1] if isinstance(e, Scored) and e.request_id == LAST)
    off = [each + 3e-4 for each in scored.probability["ctr"]]
    alter = change(LAST, probability={"ctr": off})
    found = replayed(played, tmp_path / "one", alter)
    assert found.first == {"request_id": LAST, "version": 1, "differs": "score.ctr"}
    assert found.scores["ctr"].largest == pytest.approx(3e-4, rel=1e-2)
    assert replayed(played, tmp_path / "two", alter, tolerance=1e-3).first is None


def test_a_value_that_the_version_refuses_is_named(
    played: tuple[Path, list[Entry]], tmp_path: Path
) -> None:
    """It can't have been what was served."""
    found = replayed(played, tmp_path, change(LAST, user={"income": "much"}))
    assert found.first == {"request_id": LAST, "version": 1, "differs": "user.income"}


def test_what_can_not_be_replayed_is_counted(
    played: tuple[Path, list[Entry]], tmp_path: Path
) -> None:
    """Scores of other models and lost versions, and candidates that only a key is known of."""

    def alter(entries: list[Entry]) -> list[Entry]:
        entries = change("r0", model="other")(change("r1", version=9)(entries))
        return change("r2", candidates=["i1", None, "i2", "i3"])(entries)

    found = replayed(played, tmp_path, alter)
    assert found.requests == 30
    reasons = ["of another model", "version not in the repository"]
    assert found.skipped == dict.fromkeys([*reasons, "a candidate whose id is not known"], 1)


def test_a_part_can_be_replayed(played: tuple[Path, list[Entry]], tmp_path: Path) -> None:
    """A day, a share of the requests that is always the same, the newest few."""
    options: list[dict[str, Any]] = [
        {"day": date(2023, 11, 15)},
        {"day": date(2023, 11, 14)},
        {"limit": 5},
        {"sample": 0.5},
        {"sample": 0.5},
        {"sample": 0.0},
    ]
    counts = [
        replayed(played, tmp_path / str(at), **each).requests for at, each in enumerate(options)
    ]
    assert counts[:3] == [33, 0, 5]
    assert 5 < counts[3] == counts[4] < 28
    assert counts[5] == 0


@pytest.mark.parametrize("skewed", [False, True])
def test_the_command_says_whether_there_is_skew(
    played: tuple[Path, list[Entry]], tmp_path: Path, skewed: bool
) -> None:
    """Exit code 12 when there is; a table, or one line of JSON."""
    alter = change(LAST, context={"hour": 0}) if skewed else list
    replayed(played, tmp_path, alter)
    command = ["replay", "--logs", str(tmp_path), "--repository", str(played[0] / "repository")]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == (12 if skewed else 0)
    told = CliRunner().invoke(app, [*command, "--json"])
    assert told.exit_code == shown.exit_code
    found = json.loads(told.stdout)
    assert found["skew"] == skewed
    assert found["fields"]["context.hour"] == int(skewed)
    assert ("context.hour" in (found["first"] or {}).values()) == skewed


def test_where_nothing_was_logged_there_is_no_word_of_skew(
    played: tuple[Path, list[Entry]], tmp_path: Path
) -> None:
    """A folder without scores is an error; of a day without any it is said."""
    command = ["replay", "--logs", str(tmp_path), "--repository", str(played[0] / "repository")]
    ended = CliRunner().invoke(app, command)
    assert isinstance(ended.exception, LogsError)
    assert str(ended.exception).startswith(f"{tmp_path}: scores: expected logged requests")
    replayed(played, tmp_path)
    ended = CliRunner().invoke(app, [*command, "--day", "2023-11-14"])
    assert ended.exit_code == 0
    assert "nothing was replayed" in ended.stderr
    assert "no skew" not in ended.stderr

"""DSIN through the whole line: sessions by the same times, offline and online."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.e2e.test_line import load_histories, trained
from tests.support import RedisProcess, Service, running_redis


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/, run/, repository/ and predictions of DSIN on a world whose pages are its sessions."""
    folder = tmp_path_factory.mktemp("sessions")
    data, run = folder / "data", folder / "run"
    trained("prepare", "--source", "synthetic", "--users", "40", "--out", data)
    chosen = ["dim=8", "head=[16]", "epochs=2", "rate=0.01"]
    settings = [part for each in chosen for part in ("--set", each)]
    trained(
        "fit", "--data", data, "--model", "dsin", "--out", run, "--threads", "1",
        *settings,
    )  # fmt: skip
    trained("evaluate", "--run", run, "--predictions", folder / "predictions.parquet")
    trained("export", "--run", run, "--repository", folder / "repository")
    return folder


@pytest.fixture(scope="module")
def redis(line: Path) -> Iterator[RedisProcess]:
    with running_redis(line) as started:
        yield started


@pytest.fixture(scope="module")
def service(line: Path, redis: RedisProcess) -> Iterator[Service]:
    """With the histories of all users stored."""
    load_histories(line / "data", line / "repository", redis.url)
    with Service(line / "repository", redis.url, log=line / "log") as started:
        yield started


def past(line: Path, user: str, before: int | None = None) -> list[dict[str, Any]]:
    """A user's behaviours, as a request holds them."""
    events = pl.read_parquet(line / "data" / "events.parquet")
    mine = events.filter((pl.col("user_id") == user) & pl.col("behaviour"))
    if before is not None:
        mine = mine.filter(pl.col("ts") < before)
    return mine.select("item_id", "ts").to_dicts()


def scores(service: Service, **body: Any) -> list[float]:
    answer = service.score(**body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["degraded"] is None
    return [score["ctr"] for score in answer.json()["scores"]]


def test_a_request_scores_as_it_did_offline(line: Path, service: Service) -> None:
    """With the times of its history; with others, of other sessions, it scores another way."""
    events = pl.read_parquet(line / "data" / "events.parquet").filter(pl.col("split") == "test")
    said = pl.read_parquet(line / "predictions.parquet")
    test = events.with_columns(said["probability"].alias("said"))
    differs = 0.0
    for row in test.group_by("user_id", maintain_order=True).last().head(8).to_dicts():
        history = past(line, row["user_id"], row["ts"])
        assert 1 < len({each["ts"] for each in history[-50:]}) < 50
        body = {
            "user_id": "sent",
            "candidates": [row["item_id"]],
            "context": {"position": row["position"]},
        }
        found = scores(service, **body, history=history)
        assert found == [pytest.approx(row["said"], abs=1e-5)]
        at_once = [{**each, "ts": 0} for each in history]
        differs = max(differs, abs(found[0] - scores(service, **body, history=at_once)[0]))
    assert differs > 1e-3


def test_stored_histories_score_as_those_sent_and_requests_may_share_calls(
    line: Path, service: Service
) -> None:
    """All at once, each user's scores are those that its own history gives alone."""
    users, items = [str(user) for user in range(40)], [str(item) for item in range(5)]
    alone = {
        user: scores(service, user_id="sent", candidates=items, history=past(line, user))
        for user in users[:10]
    }
    with ThreadPoolExecutor(16) as pool:
        stored = list(
            pool.map(lambda user: scores(service, user_id=user, candidates=items), users * 2)
        )
    for user, found in zip(users * 2, stored, strict=True):
        if user in alone:
            assert found == pytest.approx(alone[user], abs=1e-6)
    assert len({tuple(each) for each in alone.values()}) == 10


def test_behaviours_of_a_session_weigh_the_same(line: Path, service: Service) -> None:
    """And all weights add up to one."""
    by_item = {each["item_id"]: each for each in past(line, "3")[-20:]}  # each item once
    history = list(by_item.values())
    body = {"user_id": "sent", "candidates": ["1", "2"], "history": history, "explain": 20}
    for score in service.score(**body).json()["scores"]:
        sessions: dict[int, set[float]] = {}
        for each in score["because"]:
            sessions.setdefault(by_item[each["item_id"]]["ts"], set()).add(each["weight"])
        assert sum(each["weight"] for each in score["because"]) == pytest.approx(1, abs=1e-4)
        for weights in sessions.values():
            assert max(weights) == pytest.approx(min(weights), abs=1e-6)
        assert len(history) > len(sessions) > 1

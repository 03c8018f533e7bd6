"""What a real service served and logged is rebuilt offline, bit by bit, from the log alone."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from model.contract.repository import Repository
from tests.e2e.test_line import load_histories
from tests.support import ROOT, TOY, Service, publish_toy, running_redis
from tests.training.live import base_logs
from training.collected import Collected
from training.join import Rules, join
from training.replay import replay

USERS = ["u0", "u1", "é"]
STEPS = 40
LENGTH = 9


def play(service: Service, worker: int, now: int) -> int:
    """Scores in rows and columns, two impressions of each and a click of one caller; late events,
    repeats and ties among them. How many clicks were taken."""
    draw = np.random.default_rng(worker)
    clicks = 0
    for step in range(STEPS):
        user, request = USERS[int(draw.integers(3))], f"r{worker}-{step}"
        items = [f"i{n}" for n in draw.choice(60, 6, replace=False)]
        asked: dict[str, Any] = {"user_id": user, "context": {"hour": step % 24}}
        if step % 2:
            asked |= {"item_ids": items, "fields": {"price": [1.5, None, 0.5, 2.5, None, 1.5]}}
        else:
            own = {"item_id": items[1], "genre": ["noir"], "price": 1.5}
            asked |= {"candidates": [items[0], own, *items[2:]], "user": {"income": 12.5}}
        if step % 7 == 0:
            asked["history"] = [{"item_id": "i3", "ts": step, "rating": "5"}]
        path = "/score/columns" if step % 2 else "/score"
        headers = {"X-Request-ID": request}
        assert service.client.post(path, json=asked, headers=headers).status_code == 200
        about = {"user_id": user, "request_id": request, "ts": now - 3 * (STEPS - step) + worker}
        events = [{**about, "item_id": item, "action": "impression"} for item in items[:2]]
        events.append({**about, "item_id": items[0], "action": "click", "rating": str(step % 6)})
        ago = int(draw.integers(-1, 60))
        late = {"user_id": user, "item_id": f"i{step % 5}", "ts": now - ago, "rating": "2"}
        events += [{**late, "action": action} for action in ("click", "conversion", "click")]
        answer = service.client.post("/events", json={"events": events})
        assert answer.status_code == 200
        taken = [each["status"] == "accepted" for each in answer.json()["results"]]
        assert all(taken[:2])  # the others may be older than a history that is full
        clicks += taken[2]
    return clicks


def test_a_real_service_has_no_skew(tmp_path: Path) -> None:
    """Callers race each other for the same users; prepared histories are loaded before."""
    repository, logs = tmp_path / "repository", tmp_path / "logs"
    text = TOY.replace("history_length = 5", f"history_length = {LENGTH}")
    publish_toy(repository, schema_text=text)
    base_logs(logs / "base", text).write(logs / "base")
    environment = {"DINSERVE_LOG_SHARE": "1"}
    with running_redis(tmp_path) as redis:
        load_histories(logs / "base", repository, redis.url)
        log = tmp_path / "log"
        with (
            Service(repository, redis.url, log=log, environment=environment) as service,
            ThreadPoolExecutor(3) as pool,
        ):
            now = int(time.time()) - 1
            clicks = sum(pool.map(lambda worker: play(service, worker, now), range(3)))
        command = [sys.executable, "-m", "training", "collect", "--once", "--logs", str(logs)]
        command += ["--redis-url", redis.url]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    collected = Collected(logs)
    assert collected.scores()["length"].max() == LENGTH
    found = replay(collected, Repository(repository, "toy"))
    assert found.first is None, found
    assert (found.requests, found.skipped) == (3 * STEPS, {})
    today = datetime.fromtimestamp(now, UTC).date()
    joined = join(collected, today - timedelta(days=1), today, Rules(settle_seconds=0, base="none"))
    assert (joined.tally.kept, joined.tally.left_out) == (2 * 3 * STEPS, {})
    labels = joined.logs.events.filter(pl.col("split").is_not_null())["ctr"]
    assert labels.sum() == clicks > STEPS

"""Feedback through real processes: what a service took is in the files until it is erased."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from tests.support import PATIENT, ROOT, Service, publish_toy, running_redis
from training.collected import Collected


def test_what_the_service_took_is_collected_until_its_user_is_erased(tmp_path: Path) -> None:
    """Scores, impressions and clicks of two users come into the files; an erased user's are gone
    from them, and what that user does later is there."""
    logs = tmp_path / "logs"
    publish_toy(tmp_path / "repository")
    environment = PATIENT | {"DINSERVE_LOG_SHARE": "1"}
    with (
        running_redis(tmp_path) as redis,
        Service(
            tmp_path / "repository",
            redis.url,
            log=tmp_path / "service.log",
            environment=environment,
        ) as service,
    ):

        def visit(user: str, ago: int) -> None:
            """A page is scored and shown, and one item of it clicked."""
            now = int(time.time())
            answer = service.score(user_id=user, candidates=["i1", "i2"])
            about = {"user_id": user, "request_id": answer.json()["request_id"]}
            events = [
                {**about, "item_id": item, "action": action, "ts": now - ago}
                for item, action in (("i1", "impression"), ("i2", "impression"), ("i2", "click"))
            ]
            told = service.client.post("/events", json={"events": events}).json()
            assert told["accepted"] == 3

        def collected(scores: int) -> Collected:
            """Collect until so many scores are there; they are logged behind the answers' back."""
            command = [sys.executable, "-m", "training", "collect", "--once"]
            command += ["--logs", str(logs), "--redis-url", redis.url]
            command += ["--repository", str(tmp_path / "repository")]
            found, deadline = Collected(logs), time.monotonic() + 60
            while True:
                subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
                if len(found.scores()) == scores or time.monotonic() > deadline:
                    return found

        for user in ("ann", "bob"):
            visit(user, ago=100)
        found = collected(scores=2)
        assert sorted(found.events()["user_id"]) == ["ann"] * 3 + ["bob"] * 3
        assert sorted(found.scores()["user_id"]) == ["ann", "bob"]
        assert set(found.events()["request_id"]) == set(found.scores()["request_id"])

        assert service.client.delete("/users/ann").status_code == 200
        time.sleep(1.1)  # what is within a minute of an erasure counts as before it
        visit("ann", ago=-60)
        found = collected(scores=2)
        [came_back] = found.scores().filter(user_id="ann")["request_id"]
        assert set(found.events().filter(user_id="ann")["request_id"]) == {came_back}
        assert len(found.events().filter(user_id="bob")) == 3

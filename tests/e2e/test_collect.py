"""Feedback through real processes: what a service took is in the files until it is erased."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from tests.support import ROOT, Service, publish_toy, running_redis
from training.collected import Collected


def test_what_the_service_took_is_collected_until_its_user_is_erased(tmp_path: Path) -> None:
    """Scores, impressions and clicks of two users come into the files; an erased user's are gone
    from them, and what that user does later is there, but for scores of the next minute."""
    logs = tmp_path / "logs"
    publish_toy(tmp_path / "repository")
    environment = {"DINSERVE_LOG_SHARE": "1"}
    with (
        running_redis(tmp_path) as redis,
        Service(
            tmp_path / "repository",
            redis.url,
            log=tmp_path / "service.log",
            environment=environment,
        ) as service,
    ):

        def visit(user: str, ago: int) -> str:
            """A page is scored and shown, and one item of it clicked; its request id."""
            now = int(time.time())
            answer = service.score(user_id=user, candidates=["i1", "i2"])
            request_id = str(answer.json()["request_id"])
            about = {"user_id": user, "request_id": request_id}
            events = [
                {**about, "item_id": item, "action": action, "ts": now - ago}
                for item, action in (("i1", "impression"), ("i2", "impression"), ("i2", "click"))
            ]
            told = service.client.post("/events", json={"events": events}).json()
            assert told["accepted"] == 3
            return request_id

        def collected(scores: int) -> Collected:
            """Collect until so many scores are there; they are logged behind the answers' back."""
            command = [sys.executable, "-m", "training", "collect", "--once"]
            command += ["--logs", str(logs), "--redis-url", redis.url]
            command += ["--repository", str(tmp_path / "repository")]
            found, deadline = Collected(logs), time.monotonic() + 120
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
        came_back = visit("ann", ago=-60)
        deadline = time.monotonic() + 120
        while service.metric("dinserve_scores_logged_total") < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        found = collected(scores=1)
        assert found.scores()["user_id"].to_list() == ["bob"]
        assert set(found.events().filter(user_id="ann")["request_id"]) == {came_back}
        assert len(found.events().filter(user_id="bob")) == 3

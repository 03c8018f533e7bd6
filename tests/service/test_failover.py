"""A failover under load: answers are degraded while there is no master, and none fails."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from model.contract.encode import Encoder
from model.contract.schema import Schema
from model.contract.store import history_key
from tests.store.forms import Guarded, Replicated, until
from tests.support import RedisProcess, Service

ASK = json.dumps({"user_id": "u", "candidates": ["i1"]}).encode()
ENVIRONMENT = {
    "DINSERVE_STORE_TIMEOUT_MS": "300",
    "DINSERVE_TIMEOUT_MS": "30000",
    "DINSERVE_EVENT_TIMEOUT_MS": "1000",
    "DINSERVE_READY_WITHOUT_REDIS": "0",
}


class Caller(threading.Thread):
    """Scores again and again, and keeps what came: when, which status, and what was degraded."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._port = port
        self.stop = threading.Event()
        self.answers: list[tuple[float, int, str | None, int]] = []

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        while not self.stop.wait(0.01):
            connection.request("POST", "/score", ASK, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            body: Any = json.loads(answer.read())
            seen = body.get("degraded"), body.get("history_length", -1)
            self.answers.append((time.monotonic(), answer.status, *seen))
        connection.close()

    def whole_since(self, start: float) -> bool:
        """Whether an answer after that time was made with the history."""
        return any(at > start and not degraded for at, _, degraded, _ in self.answers)


@pytest.mark.parametrize("ending", [RedisProcess.kill, RedisProcess.hang])
@pytest.mark.parametrize("form", [Guarded, Replicated])
def test_a_failover_degrades_and_fails_nothing(
    form: type[Guarded | Replicated],
    ending: Callable[[RedisProcess], None],
    repository: Path,
    tmp_path: Path,
    schema: Schema,
    encoder: Encoder,
) -> None:
    """When the master dies or hangs, scores come without history until the Sentinel, or the other
    nodes of its cluster, have made the replica master, then with it within 5 s; and events are
    taken again."""
    guarded = form(tmp_path)
    record = encoder.records([{"item_id": "i1", "ts": 1, "rating": "3"}]).tobytes()
    with guarded.running():
        with Redis(port=guarded.master.port) as client:
            client.set(history_key("din", "u", schema.layout), record)
            assert client.wait(1, 10_000) == 1
        with Service(
            repository, guarded.url, log=tmp_path / "log", environment=ENVIRONMENT
        ) as service:
            callers = [Caller(service.port) for _ in range(3)]
            for caller in callers:
                caller.start()
            try:
                until(lambda: all(caller.whole_since(0) for caller in callers))
                ending(guarded.master)
                until(lambda: any(each[2] for caller in callers for each in caller.answers))
                until(guarded.elected)
                elected = time.monotonic()
                until(lambda: all(caller.whole_since(elected) for caller in callers))
                assert time.monotonic() - elected < 5
                event = {"user_id": "u", "item_id": "i2", "action": "click", "ts": int(time.time())}
                until(lambda: service.client.post("/events", json=event).status_code == 200)
            finally:
                for caller in callers:
                    caller.stop.set()
                    caller.join()
                guarded.master.kill()
            answers = [each for caller in callers for each in caller.answers]
            assert {status for _, status, _, _ in answers} == {200}
            assert {length for _, _, degraded, length in answers if not degraded} <= {1, 2}
            assert {degraded for _, _, degraded, _ in answers} == {None, "history_unavailable"}
            assert service.client.get("/readyz").status_code == 200
            assert "Traceback" not in service.logs()

"""The whole line on every form of the store: histories in, scores, feedback, collected logs."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import polars as pl
import pytest

from tests.e2e.test_line import load_histories
from tests.store.forms import Guarded, behind_tls, running_cluster
from tests.support import ROOT, RedisProcess, Service, publish_toy, running_redis
from training.collected import Collected

USERS = [f"user {number}" for number in range(20)]


@contextmanager
def cluster(folder: Path) -> Iterator[str]:
    with running_cluster(folder) as running:
        yield running.url


@contextmanager
def sentinel(folder: Path) -> Iterator[str]:
    guarded = Guarded(folder)
    with guarded.running():
        yield guarded.url


@contextmanager
def tls(folder: Path) -> Iterator[str]:
    with running_redis(folder) as redis, behind_tls(redis.port, folder) as (port, authority):
        own = f"ssl_certfile={folder / 'client.pem'}&ssl_keyfile={folder / 'client.key'}"
        yield f"rediss://localhost:{port}/0?ssl_ca_certs={authority}&{own}"


@contextmanager
def socket_file(folder: Path) -> Iterator[str]:
    path = folder / "redis.sock"
    server = RedisProcess(folder, "--unixsocket", str(path))
    server.start()
    try:
        yield f"unix://{path}?db=0"
    finally:
        server.kill()


@pytest.mark.parametrize("form", [cluster, sentinel, tls, socket_file])
def test_the_line_works_on_every_form_of_the_store(
    form: Callable[[Path], AbstractContextManager[str]],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Histories of many users are loaded and scored with, events of all of them enter their
    histories and the log, one user is erased, and the log is collected."""
    publish_toy(tmp_path / "root")
    rows = [(user, f"i{at}", at) for user in USERS for at in range(3)]
    events = pl.DataFrame(rows, schema=["user_id", "item_id", "ts"], orient="row")
    events = events.with_columns(behaviour=True, rating=pl.lit("5"))
    events.write_parquet(tmp_path / "events.parquet")
    users = pl.DataFrame({"user_id": USERS, "gender": "F", "income": 1.0})
    users.write_parquet(tmp_path / "users.parquet")
    now = int(time.time())
    with form(tmp_path_factory.mktemp("store")) as url:
        load_histories(tmp_path, tmp_path / "root", url)
        environment = {"DINSERVE_READY_WITHOUT_REDIS": "0"}
        with Service(
            tmp_path / "root", url, log=tmp_path / "log", environment=environment
        ) as service:

            def seen(user: str) -> tuple[int, str | None]:
                body = service.score(user_id=user, candidates=["i1"]).json()
                return body["history_length"], body["degraded"]

            assert [seen(user) for user in USERS] == [(3, None)] * len(USERS)
            clicks = [
                {"user_id": user, "item_id": "i4", "action": "click", "ts": now} for user in USERS
            ]
            answer = service.client.post("/events", json={"events": clicks}).json()
            assert answer["accepted"] == len(USERS)
            again = service.client.post("/events", json={"events": clicks}).json()
            assert again["duplicate"] == len(USERS)
            assert [seen(user) for user in USERS] == [(4, None)] * len(USERS)
            assert service.client.delete(f"/users/{USERS[0]}").json()["entries"] == 1
            assert seen(USERS[0]) == (0, None)
            assert "Traceback" not in service.logs()
        command = [sys.executable, "-m", "training", "collect", "--once", "--redis-url", url]
        command += ["--logs", str(tmp_path / "logs"), "--repository", str(tmp_path / "root")]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
    collected = Collected(tmp_path / "logs").events()
    assert sorted(collected["user_id"]) == sorted(USERS[1:])

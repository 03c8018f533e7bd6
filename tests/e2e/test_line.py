"""The whole line, from raw files to an HTTP score: all commands, a real Redis, a real service.

The commands run in this process, where torch is loaded; `test_demo` starts them all.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import polars as pl
import pytest

from model.contract.repository import Repository
from service.__main__ import main
from tests.support import ROOT, RedisProcess, Service, running_redis
from tests.training.test_job import command

USERS, MOVIES, RATINGS = 80, 40, 30
ASKED = 50  # requests of each client to a version
GENRES = ["Action", "Comedy", "Drama", "Children's"]
REAL = ROOT.parent / "shared" / "data"


def trained(*arguments: str | Path) -> None:
    """Run ``training arguments``. Fails the test when it fails."""
    assert command(*arguments) == 0


def load_histories(data: Path, repository: Path, redis_url: str) -> None:
    """Run ``service load-histories``. Fails the test when it fails."""
    words = ["--data", data, "--repository", repository, "--redis-url", redis_url]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["service", "load-histories", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            main()
    assert not left.value.code


def write_movielens(path: Path) -> None:
    """A small archive in the official layout: users like films of their own genre."""
    generator = np.random.default_rng(0)
    ratings = []
    for user in range(1, USERS + 1):
        films = generator.choice(MOVIES, RATINGS, replace=False) + 1
        for at, film in enumerate(films):
            liked = (film % len(GENRES)) == (user % len(GENRES))
            stars = generator.choice([4, 5] if liked else [1, 2, 3, 4])
            ratings.append(f"{user}::{film}::{stars}::{978300000 + 60 * at}")
    movies = [f"{m}::Film {m} (1999)::{GENRES[m % len(GENRES)]}" for m in range(1, MOVIES + 1)]
    people = [f"{u}::{'MF'[u % 2]}::25::{u % 20}::00000" for u in range(1, USERS + 1)]
    with zipfile.ZipFile(path, "w") as archive:
        for name, lines in (("ratings", ratings), ("movies", movies), ("users", people)):
            archive.writestr(f"ml-1m/{name}.dat", "\n".join(lines) + "\n")


@dataclass(frozen=True)
class Line:
    """What the offline half left behind."""

    data: Path
    run: Path
    repository: Path
    redis: RedisProcess


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    """Raw files through prepare, fit, export and load-histories, once for the module."""
    folder = tmp_path_factory.mktemp("line")
    write_movielens(folder / "ml-1m.zip")
    data, run, repository = folder / "data", folder / "run", folder / "repository"
    trained(
        "prepare", "--source", "movielens-1m", "--path", folder / "ml-1m.zip",
        "--out", data,
    )  # fmt: skip
    trained(
        "fit", "--data", data, "--model", "din", "--seed", "1", "--out", run,
        "--set", "epochs=2", "--set", "size=64", "--set", "dim=4", "--threads", "1",
    )  # fmt: skip
    trained("export", "--run", run, "--repository", repository)
    with running_redis(folder) as redis:
        load_histories(data, repository, redis.url)
        yield Line(data, run, repository, redis)


@pytest.fixture(scope="module")
def service(line: Line, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """What serves the line, from one test to the next."""
    log = tmp_path_factory.mktemp("service") / "log"
    with Service(line.repository, line.redis.url, log=log) as started:
        yield started


def test_raw_files_become_an_http_score_equal_to_the_offline_one(
    line: Line, service: Service, tmp_path: Path
):
    """The service gives a test user's newest impression the probability that evaluate gave it."""
    predictions = tmp_path / "predictions.parquet"
    trained("evaluate", "--run", line.run, "--predictions", predictions)
    offline = pl.read_parquet(predictions)
    events = pl.read_parquet(line.data / "events.parquet").filter(pl.col("split") == "test")
    newest = events.sort("user_id", "ts").group_by("user_id", maintain_order=True).last()
    expected = newest.join(offline, left_on=["user_id", "item_id"], right_on=["user", "item"])
    everything = pl.read_parquet(line.data / "events.parquet")
    for row in expected.head(10).iter_rows(named=True):
        user = row["user_id"]
        earlier = everything.filter((pl.col("user_id") == user) & (pl.col("ts") < row["ts"]))
        history = earlier.sort("ts").select("item_id", "ts", "rating").to_dicts()
        answer = service.score(user_id=user, candidates=[row["item_id"]], history=history)
        assert answer.status_code == 200
        body = answer.json()
        assert body["history_length"] == min(len(history), 100)
        assert body["degraded"] is None
        assert body["scores"][0]["status"] == "known"
        assert body["scores"][0]["ctr"] == pytest.approx(row["probability"], abs=1e-5)


def test_stored_histories_and_profiles_give_the_scores_of_the_same_ones_sent(
    line: Line, service: Service
):
    """What load-histories put into Redis scores as the raw history and profile in a request do."""
    events = pl.read_parquet(line.data / "events.parquet").filter(pl.col("user_id") == "7")
    history = events.sort("ts").select("item_id", "ts", "rating").to_dicts()
    profile = pl.read_parquet(line.data / "users.parquet").filter(pl.col("user_id") == "7")
    person = profile.drop("user_id").to_dicts()[0]
    films = [str(film) for film in range(1, MOVIES + 1)]
    stored = service.score(user_id=7, candidates=films, explain=2).json()
    sent = service.score(
        user_id="someone else", candidates=films, history=history, user=person, explain=2
    ).json()
    assert stored["history_length"] == sent["history_length"] == RATINGS
    assert stored["scores"] == sent["scores"]
    assert all(len(score["because"]) == 2 for score in stored["scores"])
    seen = {behaviour["item_id"] for behaviour in history}
    assert {b["item_id"] for score in stored["scores"] for b in score["because"]} <= seen


def test_a_killed_redis_degrades_the_score_and_its_return_restores_it(line: Line, tmp_path: Path):
    """Redis killed in the middle: 200 with `degraded`; Redis back: histories are read again."""
    with running_redis(tmp_path) as redis:
        load_histories(line.data, line.repository, redis.url)
        with Service(line.repository, redis.url, log=tmp_path / "log") as service:
            ask = {"user_id": "3", "candidates": ["1", "2"]}
            before = service.score(**ask).json()
            assert (before["degraded"], before["history_length"]) == (None, RATINGS)
            redis.kill()
            for _ in range(10):
                answer = service.score(**ask)
                assert answer.status_code == 200
                body = answer.json()
                assert (body["degraded"], body["history_length"]) == ("history_unavailable", 0)
                assert 0 < body["scores"][0]["ctr"] < 1
            redis.start()
            load_histories(line.data, line.repository, redis.url)
            deadline = time.monotonic() + 120
            while service.score(**ask).json()["degraded"] and time.monotonic() < deadline:
                time.sleep(0.1)
            assert service.score(**ask).json()["scores"] == before["scores"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc on this system")
def test_the_service_stays_under_400_mib_after_the_largest_requests(service: Service):
    """2,000 candidates with reasons, stored histories and sent ones: resident memory is bounded."""
    films = [str(film % (MOVIES + 10)) for film in range(2000)]  # some are unknown
    history = [{"item_id": film, "ts": at, "rating": "4"} for at, film in enumerate(films)]
    for user in range(20):
        more = {"history": history} if user % 2 else {}
        answer = service.score(
            user_id=str(user), candidates=films, explain=20, timeout_ms=30000, **more
        )
        assert answer.status_code == 200
        assert len(answer.json()["scores"]) == 2000
    assert service.memory_mib() < 400


def until(true: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@dataclass
class Load:
    """Requests one after the other until told to stop; every answer is kept."""

    url: str
    stop: threading.Event = field(default_factory=threading.Event)
    statuses: list[int] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)

    def run(self) -> None:
        with httpx.Client(base_url=self.url, timeout=30, verify=False) as client:
            while not self.stop.is_set():
                body = {"user_id": "5", "candidates": ["1", "2", "3"], "timeout_ms": 20000}
                answer = client.post("/score", json=body)
                self.statuses.append(answer.status_code)
                if answer.status_code == 200:
                    self.versions.append(answer.json()["version"])
                time.sleep(0.005)


def test_a_new_version_takes_over_under_load_with_no_failed_request(line: Line, service: Service):
    """Publishing a version while requests stream in: all are 200, and the new one takes over."""
    found = Repository.find(line.repository)
    first = service.score(user_id="5", candidates=["1"]).json()["version"]
    whole = found.folder / str(first)
    loads = [Load(service.url) for _ in range(3)]
    threads = [threading.Thread(target=load.run) for load in loads]
    for thread in threads:
        thread.start()
    try:
        until(lambda: all(load.versions.count(first) >= ASKED for load in loads))
        found.publish(lambda folder: shutil.copytree(whole, folder, dirs_exist_ok=True))
        until(lambda: all(load.versions.count(first + 1) >= ASKED for load in loads))
    finally:
        for load in loads:
            load.stop.set()
        for thread in threads:
            thread.join()
    for load in loads:
        assert set(load.statuses) == {200}
        assert load.versions == sorted(load.versions)
        assert set(load.versions) == {first, first + 1}


@pytest.mark.real_data
@pytest.mark.skipif(not REAL.exists(), reason=f"no real data in {REAL.name}/ beside the project")
def test_the_line_holds_on_real_reviews(tmp_path: Path):
    """Amazon Beauty through the whole line: one epoch beats chance by far, and users get scores."""
    data, run, repository = tmp_path / "data", tmp_path / "run", tmp_path / "repository"
    trained(
        "prepare", "--source", "amazon-csv", "--path", REAL / "amazon-beauty",
        "--out", data,
    )  # fmt: skip
    quick = ["epochs=1", "dim=16", "dropout=0.0", "embedding_dropout=0.0", "behaviour_dropout=0.0"]
    settings = [part for each in quick for part in ("--set", each)]
    trained("fit", "--data", data, "--out", run, "--threads", "1", *settings)
    trained("export", "--run", run, "--repository", repository)
    predictions = tmp_path / "predictions.parquet"
    trained("evaluate", "--run", run, "--predictions", predictions)
    pairs = pl.read_parquet(predictions).sort("user", "label")
    assert len(pairs) == 2 * 22_363
    chosen = pairs["probability"].to_numpy().reshape(-1, 2)
    assert (chosen[:, 1] > chosen[:, 0]).mean() > 0.7
    with running_redis(tmp_path) as redis:
        load_histories(data, repository, redis.url)
        with Service(repository, redis.url, log=tmp_path / "log") as service:
            body = service.score(user_id="1", candidates=["5", "5727"]).json()
            assert body["history_length"] > 0
            assert all(score["status"] == "known" for score in body["scores"])

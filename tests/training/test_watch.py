"""The watch over a running collector: real Redis, real files, real labels, real metrics."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import pytest
import redis
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from model.contract.labels import LabelFile
from model.contract.log import Entry, Event, Snapshot
from model.contract.repository import Repository
from model.contract.schema import Schema
from tests.support import ROOT, TOY, RedisProcess, publish_toy, running_redis
from tests.training.entries import add, erasure, score, taken
from training.collected import Writer
from training.drift import HISTOGRAM, histogram
from training.files import Files
from training.guard import Band
from training.quality import Span, Window
from training.telemetry import Telemetry
from training.watch import Watch

MANY = 1200


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    with running_redis(tmp_path_factory.mktemp("redis")) as found:
        yield found


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Version 1 is stable, version 2 a canary with a tenth of the traffic."""
    for bias in (0.0, 1.0):
        publish_toy(tmp_path / "repository", bias)
    found = Repository(tmp_path / "repository", "toy")
    LabelFile(found, by="test").start_canary(2, 0.1)
    return found


def traffic(version: int, said: float, clicked: int, count: int = MANY) -> list[Entry]:
    """Answered requests that were shown just now, every ``clicked``-th with a click."""
    now, found = int(time.time() * 1000), list[Entry]()
    for n in range(count):
        user, request = f"{version}-u{n}", f"r{n}"
        more = {"model": "toy", "version": version, "received": now, "unknown": [1]}
        answer = {"probability": {"ctr": [said, said]}, "history": Snapshot(0, None, "0")}
        found.append(score(user, request, ["a", "b"], **more, **answer))
        shown = {"ts": now // 1000, "received": now, "request_id": request}
        found.append(Event(user, "a", "impression", **shown))
        if n % clicked == 0:
            found.append(Event(user, "a", "click", **shown))
    return found


Samples = Mapping[tuple[str, str], float]


def samples(text: str) -> Samples:
    """Each metric by its name and the version or kind it is of."""
    return {
        (sample.name, sample.labels.get("version", sample.labels.get("kind", ""))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def collecting(server: RedisProcess, logs: Path, repository: Repository, *more: str) -> list[str]:
    where = ["--logs", logs, "--redis-url", server.url, "--repository", repository.root]
    options = ["--label-delay", "0", "--metrics-port", "0", *more]
    return [sys.executable, "-m", "training", "collect", *map(str, where), *options]


def test_a_canary_that_is_off_loses_its_traffic(
    server: RedisProcess, repository: Repository, tmp_path: Path
) -> None:
    """A running collector sees it in the feedback, sets its share to 0, says so, and tells
    Prometheus how both versions do; the schema is the newest version's."""
    command = collecting(server, tmp_path / "logs", repository, "--every", "0.1")
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        told = (json.loads(line) for line in process.stdout)
        port = next(line["port"] for line in told if line["event"] == "metrics")
        with redis.Redis.from_url(server.url, protocol=2) as client:
            add(client, *traffic(1, said=0.05, clicked=20), *traffic(2, said=0.2, clicked=20))
        line = next(line for line in told if line["event"] == "canary_withdrawn")
        text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        process.terminate()
        rest = list(told)
        assert process.wait(120) == 0
    assert not [each for each in rest if each["event"] == "canary_withdrawn"]
    assert (line["model"], line["version"]) == ("toy", 2)
    assert line["ratio"] == pytest.approx(4, rel=0.2)
    labels = LabelFile(repository, by="test").read()
    assert (labels.stable, labels.canary, labels.canary_share) == (1, 2, 0.0)
    assert (labels.changes[-1].by, labels.changes[-1].what) == (
        "collect",
        "canary_share 0.1 to 0.0",
    )
    assert "predicted/observed" in labels.changes[-1].why
    found = samples(text)
    assert found["dinserve_live_predicted_observed", "1"] == pytest.approx(1, abs=0.2)
    assert found["dinserve_live_unknown_items", "1"] == 0.5
    assert found["dinserve_live_unknown_users", "2"] == 1.0
    assert found["dinserve_collect_canaries_withdrawn_total", ""] == 1
    assert not any(user in text for user in ("1-u0", "2-u0"))


def test_a_collection_by_the_clock_knows_what_was_collected_before(
    server: RedisProcess, repository: Repository, tmp_path: Path
) -> None:
    """Half of the evidence is not enough; the second run has that of the first beside its own.
    Metrics are left in a file."""
    saved = tmp_path / "metrics.prom"
    command = collecting(server, tmp_path / "logs", repository, "--metrics-file", str(saved))
    entries = traffic(2, said=0.2, clicked=20)
    half = len(entries) // 2
    labels, shares = LabelFile(repository, by="test"), []
    for part in (entries[:half], entries[half:]):
        with redis.Redis.from_url(server.url, protocol=2) as client:
            add(client, *part)
        subprocess.run([*command, "--once"], cwd=ROOT, check=True, capture_output=True)
        shares.append(labels.read().canary_share)
    assert shares == [0.1, 0.0]
    found = samples(saved.read_text())
    assert found["dinserve_live_impressions", "2"] == MANY
    assert found["dinserve_live_clicks", "2"] == MANY / 20
    assert found["dinserve_collect_entries_total", "scores"] == pytest.approx(MANY / 2, abs=2)
    assert found["dinserve_collect_waiting_entries", ""] == 0


def test_a_metrics_file_that_cant_be_written_stops_no_collection(
    server: RedisProcess, repository: Repository, tmp_path: Path
) -> None:
    """It is told, and what was logged is collected."""
    logs, away = tmp_path / "logs", tmp_path / "away" / "metrics.prom"
    command = collecting(server, logs, repository, "--metrics-file", str(away), "--once")
    with redis.Redis.from_url(server.url, protocol=2) as client:
        add(client, *traffic(2, said=0.2, clicked=20)[:10])
    ended = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    (line,) = (json.loads(each) for each in ended.stdout.splitlines() if "metrics_file" in each)
    assert line["event"] == "metrics_file_failed"
    assert str(away.parent) in line["error"]


class Watched:
    """A watch with all that it tells, and the folder it is told of; its clock can be set on."""

    def __init__(self, folder: Path, repository: Repository | None) -> None:
        self.telemetry, self.told, self.later = Telemetry(), list[str](), 0.0
        self._writer = Writer(Files(folder), "s")
        self._watch = Watch(
            Window(Schema.parse(TOY), Span(seconds=100, delay=0)),
            self.telemetry,
            repository,
            Band(),
            lambda event, **_: self.told.append(event),
            lambda: time.time() + self.later,
        )

    def after(self, *entries: Entry) -> Samples:
        """What is told once these were written."""
        self.later += 1
        first = round((time.time() + self.later) * 1000)
        self._watch.written(self._writer.write(taken(entries, first)))
        self._watch.turn()
        return samples(generate_latest(self.telemetry.registry).decode())


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder of collected logs that is ours alone."""
    with Files(tmp_path / "logs").alone():
        yield tmp_path / "logs"


def test_scores_are_held_against_those_of_the_validation_set(
    folder: Path, repository: Repository
) -> None:
    """Where the version was published with their histogram."""
    manifest = repository.folder / "1" / "manifest.json"
    body = json.loads(manifest.read_text())
    body["metrics"][HISTOGRAM] = {"ctr": histogram([0.05] * 10)}
    manifest.write_text(json.dumps(body))
    watched = Watched(folder, repository)
    found = watched.after(*traffic(1, 0.05, 20, count=20), *traffic(2, 0.05, 20, count=20))
    assert found["dinserve_live_score_psi", "1"] == pytest.approx(0)
    assert ("dinserve_live_score_psi", "2") not in found
    watched = Watched(folder, repository)
    found = watched.after(*traffic(1, 0.5, 20, count=25)[-15:])
    assert found["dinserve_live_score_psi", "1"] > 1


def test_labels_that_cant_be_read_stop_nothing(folder: Path, repository: Repository) -> None:
    """It is said, and the figures are told all the same."""
    LabelFile(repository, by="test").path.write_text("{")
    watched = Watched(folder, repository)
    found = watched.after(*traffic(1, 0.05, 20, count=20))
    assert watched.told == ["guard_failed"]
    assert found["dinserve_live_impressions", "1"] == 20


def test_an_erased_user_is_gone_from_the_figures(folder: Path) -> None:
    """With the erasure, not only when the window has passed."""
    watched = Watched(folder, None)
    watched.after(*traffic(1, 0.05, 20, count=20))
    found = watched.after(erasure("1-u3", int(time.time()) + 5))
    assert found["dinserve_live_impressions", "1"] == 19


def test_a_version_without_impressions_is_not_told_of_any_more(folder: Path) -> None:
    """Its last figures do not stand for ever."""
    watched = Watched(folder, None)
    assert ("dinserve_live_auc", "1") in watched.after(*traffic(1, 0.05, 20, count=20))
    watched.later += 200
    assert ("dinserve_live_auc", "1") not in watched.after()


def test_a_port_that_is_taken_is_an_error() -> None:
    """Not a collector without metrics."""
    telemetry = Telemetry()
    with telemetry.served("127.0.0.1", 0) as port:
        with pytest.raises(OSError, match="in use"), telemetry.served("127.0.0.1", port):
            pass
        assert httpx.get(f"http://127.0.0.1:{port}/metrics").status_code == 200

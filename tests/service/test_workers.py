"""Several worker processes on one port: what they share, what they survive, how they end."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from model.contract.bundle import Bundle
from model.contract.labels import LabelFile
from model.contract.repository import Repository
from service.app import create_app
from service.engine import EngineError
from service.settings import Settings
from tests.support import ROOT, Service, publish_toy

NO_REDIS = "redis://127.0.0.1:1/0"
WHOLE = {"history": [], "user": {"gender": "F", "income": 1.0}}  # the store is not asked
ASK = json.dumps({"user_id": "u", "candidates": ["i1"], **WHOLE}).encode()
HEAD = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/smaps").exists(), reason="needs /proc of Linux"
)


class Workers(Service):
    """A service of two workers, on a port that the kernel picked."""

    def __init__(self, repository: Path, log: Path, *options: str, **environment: str) -> None:
        options = ("--workers", "2", "--port", "0", *options)
        super().__init__(repository, NO_REDIS, *options, log=log, environment=environment)

    def wait(self, path: str, seconds: float = 120) -> None:
        """Until both workers are ready."""
        until(lambda: self.process.poll() is not None or "listening on" in self.logs())
        found = re.search(r"listening on \S+ port (\d+)", self.logs())
        assert found is not None, self.logs()
        self.port = int(found[1])
        until(lambda: self.metric("dinserve_ready") == 2)

    def open(self) -> Connection:
        return Connection(self.port)

    def one_of_each(self, opened: ExitStack) -> list[Connection]:
        """A connection to each of the two workers."""
        found: dict[int, Connection] = {}
        while len(found) < 2:
            connection = opened.enter_context(self.open())
            found.setdefault(connection.pid, connection)
        return list(found.values())

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels, told by any worker."""
        with self.open() as connection:
            found = connection.metrics()
        return sum(value for each, value in found.items() if each.partition("{")[0] == name)


class Connection:
    """One connection that is kept, and so one worker."""

    def __init__(self, port: int) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def __enter__(self) -> Connection:
        self._http.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    @cached_property
    def pid(self) -> int:
        return int(json.loads(self.ask("GET", "/readyz"))["pid"])

    def ask(self, method: str, path: str, body: bytes | None = None, status: int = 200) -> bytes:
        headers = {} if body is None else {"Content-Type": "application/json"}
        self._http.request(method, path, body, headers)
        answer = self._http.getresponse()
        found = answer.read()
        assert answer.status == status, found
        return found

    def score(self) -> Any:
        return json.loads(self.ask("POST", "/score", ASK))

    def metrics(self) -> dict[str, float]:
        """Every sample, by its name and labels."""
        lines = self.ask("GET", "/metrics").decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def begin(self) -> None:
        """Send a request without its body. Returns once the service asks for that, and so has
        begun to read; raises ConnectionError when it closes instead."""
        expecting = b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(ASK)
        self._http.sock.sendall(HEAD + expecting)
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            if not (chunk := self._http.sock.recv(1)):
                raise ConnectionResetError
            answer += chunk
        assert answer.startswith(b"HTTP/1.1 100 "), answer

    def finish(self) -> int:
        """Send the body of what was begun; the status of its answer."""
        self._http.sock.sendall(ASK)
        answer = http.client.HTTPResponse(self._http.sock, method="POST")
        try:
            answer.begin()
            answer.read()
        finally:
            answer.close()
        return answer.status


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@dataclass
class Load:
    """What a caller saw who asks again and again, and opens a new connection after a failure."""

    answers: int = 0
    versions: set[int] = field(default_factory=set)
    failed: list[int] = field(default_factory=list)

    def run(self, service: Workers, stop: threading.Event) -> None:
        while not stop.is_set():
            with service.open() as connection:
                worker = connection.pid
                try:
                    while not stop.is_set():
                        self.versions.add(connection.score()["version"])
                        self.answers += 1
                        time.sleep(0.01)
                except (ConnectionError, http.client.HTTPException):
                    self.failed.append(worker)


@dataclass
class Loads:
    """Callers in the background: ``with Loads(service) as loads``."""

    service: Workers
    callers: list[Load] = field(default_factory=lambda: [Load() for _ in range(4)])

    def __enter__(self) -> Loads:
        self._stop = threading.Event()
        self._threads = ThreadPoolExecutor(len(self.callers))
        self._runs = [
            self._threads.submit(each.run, self.service, self._stop) for each in self.callers
        ]
        self.go_on()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._threads.shutdown()
        for run in self._runs:
            run.result()

    def go_on(self) -> None:
        """Until every caller got another answer or two."""
        before = [each.answers for each in self.callers]
        until(
            lambda: (
                all(
                    each.answers > count + 1
                    for each, count in zip(self.callers, before, strict=True)
                )
                or any(run.done() for run in self._runs)
            )
        )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository for the workers alone."""
    found = tmp_path_factory.mktemp("workers") / "root"
    publish_toy(found)
    return found


@pytest.fixture(scope="module")
def workers(root: Path) -> Iterator[Workers]:
    """Two workers, who go through the tests of this module one after the other."""
    limits = {"DINSERVE_MAX_BODY_BYTES": "1000", "DINSERVE_BREAKER_FAILURES": "1"}
    with Workers(root, root.parent / "log", "--runs", "3", **limits) as running:
        yield running


def test_both_workers_answer_with_the_settings_given(workers: Workers) -> None:
    """Connections go to either process on one port; options and environment reach both."""
    with ExitStack() as opened:
        connections = workers.one_of_each(opened)
        assert workers.process.pid not in {each.pid for each in connections}
        for each in connections:
            state = json.loads(each.ask("GET", "/readyz"))
            assert (state["workers"], state["runs"], state["threads"]) == (2, 3, 1)
            assert each.score()["scores"][0]["status"] == "known"
            each.ask("POST", "/score", b" " * 1001, status=413)


def test_metrics_are_those_of_all_workers(workers: Workers) -> None:
    """Whichever worker is asked, counters and histograms are sums over both."""
    with ExitStack() as opened:
        one, other = workers.one_of_each(opened)
        before = one.metrics()
        for connection, count in ((one, 3), (other, 5)):
            for _ in range(count):
                connection.score()
        for metrics in (one.metrics(), other.metrics()):
            for name in (
                'dinserve_requests_total{status="200"}',
                "dinserve_request_seconds_count",
                'dinserve_request_seconds_bucket{le="+Inf"}',
                "dinserve_candidates_sum",
                "dinserve_model_calls_total",
            ):
                assert metrics[name] - before.get(name, 0) == 8, name
            assert metrics["dinserve_ready"] == 2
            assert metrics["dinserve_queued_pairs"] == 0
            assert metrics['dinserve_model_version{model="toy"}'] == 1
            assert metrics["dinserve_model_swaps_total"] == 2


@needs_proc
def test_metrics_tell_memory_and_time_of_each_worker(workers: Workers) -> None:
    """What is of a process and not of the service is told by the worker's number."""
    with workers.open() as connection:
        metrics = connection.metrics()
    for number in (0, 1):
        assert metrics[f'process_resident_memory_bytes{{worker="{number}"}}'] > 2**20
        assert metrics[f'process_cpu_seconds_total{{worker="{number}"}}'] > 0


def test_what_one_worker_is_in_is_told_by_the_other(workers: Workers) -> None:
    """A worker whose breaker opens is counted by whoever is asked."""
    needs_store = json.dumps({"user_id": "u", "candidates": ["i1"]}).encode()
    with ExitStack() as opened:
        one, other = workers.one_of_each(opened)
        assert other.metrics()["dinserve_breaker_open"] == 0
        assert json.loads(one.ask("POST", "/score", needs_store))["degraded"]
        until(lambda: other.metrics()["dinserve_breaker_open"] == 1)


@needs_proc
def test_ids_and_catalogue_are_shared_pages_of_their_files(workers: Workers) -> None:
    """No worker has a page of its own of these arrays: all are mapped, clean and shared."""
    with ExitStack() as opened:
        connections = workers.one_of_each(opened)
        for each in connections:
            each.score()
        for each in connections:
            mapped = mappings(each.pid)
            assert {path.stem for path in mapped} >= {*LOOKED_UP, "ends", "names", "genre"}
            assert all(sizes["Rss"] for path, sizes in mapped.items() if path.stem in LOOKED_UP)
            for path, sizes in mapped.items():
                assert sizes["Shared_Clean"] == sizes["Rss"], path
                assert sizes["Private_Dirty"] == sizes["Shared_Dirty"] == sizes["Anonymous"] == 0


LOOKED_UP = {"keys", "rows", "gender"}


def mappings(pid: int) -> dict[Path, dict[str, int]]:
    """Sizes in kB of the .npy files a process has mapped."""
    found: dict[Path, dict[str, int]] = {}
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            sizes = found.setdefault(Path(rest[-1]), {}) if line.endswith(".npy") else {}
        elif rest[-1] == "kB":
            sizes[first[:-1]] = sizes.get(first[:-1], 0) + int(rest[0])
    return found


def test_the_encoder_looks_ids_up_in_the_mapped_arrays(repository: Path) -> None:
    """What a bundle opens is not copied on its way to the encoder."""
    encoder = Bundle.open(repository / "toy" / "1").encoder
    catalogue = encoder.catalogue
    arrays = [catalogue.keys, catalogue.rows, catalogue.ends, catalogue.names]
    tables = [encoder.tables[name] for name in ("item_id", "genre", "gender", "rating", "hour")]
    for array in [*arrays, *(table.sorted_keys for table in tables)]:  # type: ignore[attr-defined]
        assert not array.flags.owndata
        assert not array.flags.writeable


def kill(service: Workers, pid: int) -> Callable[[], str]:
    """Kill a worker, and wait until its supervisor knows; gives the log from then on."""
    before = len(service.logs())
    os.kill(pid, signal.SIGKILL)
    until(lambda: "exit code is -9" in service.logs()[before:])
    return lambda: service.logs()[before:]


def test_a_killed_worker_is_replaced_while_requests_go_on(workers: Workers) -> None:
    """Only requests on its own connections fail; counters stay, and a new process takes over."""
    with ExitStack() as opened:
        doomed, other = (each.pid for each in workers.one_of_each(opened))
        before = workers.metric("dinserve_requests_total")
        with Loads(workers) as loads:
            kill(workers, doomed)
            loads.go_on()
            until(lambda: workers.metric("dinserve_ready") == 2)
            loads.go_on()
        failed = [pid for each in loads.callers for pid in each.failed]
        assert failed.count(doomed) == len(failed) <= len(loads.callers)
        answered = sum(each.answers for each in loads.callers)
        counted = workers.metric("dinserve_requests_total") - before
        assert answered <= counted <= answered + len(failed)
        after = {each.pid for each in workers.one_of_each(opened)}
        assert other in after
        assert doomed not in after


def test_a_replacement_takes_no_connection_before_it_has_a_model(
    workers: Workers, root: Path
) -> None:
    """Where its first look finds none, a new worker waits as long as another serves."""
    with ExitStack() as opened:
        doomed, other = (each.pid for each in workers.one_of_each(opened))
        elsewhere = root.rename(root.with_name("elsewhere"))
        logs = kill(workers, doomed)
        [number] = re.findall(r"worker (\d) ended", logs())
        looked = f'"worker": {number}, "message": "no new version'
        until(lambda: looked in logs().partition("exit code is -9")[2])
        for _ in range(6):
            with workers.open() as connection:
                assert connection.pid == other
                assert connection.score()["version"] == 1
                assert connection.metrics()["dinserve_ready"] == 1
        elsewhere.rename(root)
        assert doomed not in {each.pid for each in workers.one_of_each(opened)}


def test_all_workers_take_a_new_version_and_no_request_fails(workers: Workers, root: Path) -> None:
    """After a publish both serve the new version; the metric says so once the last one does."""
    with ExitStack() as opened:
        connections = workers.one_of_each(opened)
        before = workers.metric("dinserve_model_swaps_total")
        with Loads(workers) as loads:
            publish_toy(root, bias=2.0)
            until(lambda: workers.metric("dinserve_model_version") == 2)
            assert [each.score()["version"] for each in connections] == [2, 2]
            loads.go_on()
        assert [each.failed for each in loads.callers] == [[]] * len(loads.callers)
        assert {version for each in loads.callers for version in each.versions} == {1, 2}
        assert workers.metric("dinserve_model_swaps_total") == before + 2


def test_all_workers_follow_the_labels(workers: Workers, root: Path) -> None:
    """Every worker puts a user on the same side; the metrics tell one canary, not a sum, and it is
    gone once the last worker gave it up. A label that none can follow is counted by worker."""
    labels = LabelFile(Repository(root, "toy"), by="test")
    with ExitStack() as opened:
        connections = workers.one_of_each(opened)

        def serve(version: int) -> bool:
            return [each.score()["version"] for each in connections] == [version, version]

        stable = connections[0].score()["version"]
        labels.promote(stable)
        canary, broken = (publish_toy(root, bias=bias) for bias in (3.0, 4.0))
        labels.start_canary(canary, 1.0)
        until(lambda: serve(canary))
        assert workers.metric("dinserve_label_version") == canary
        assert workers.metric("dinserve_label_share") == 1
        assert workers.metric("dinserve_model_version") == stable
        labels.stop_canary()
        until(lambda: serve(stable))
        until(lambda: workers.metric("dinserve_label_version") == 0)
        graph = root / "toy" / str(broken) / "model.onnx"
        graph.write_bytes(graph.read_bytes()[:-1])
        labels.promote(broken)
        until(lambda: workers.metric("dinserve_labels_broken") == 2)
        assert serve(stable)
        labels.rollback()
        until(lambda: workers.metric("dinserve_labels_broken") == 0)


def test_stopped_workers_finish_what_they_began(tmp_path: Path) -> None:
    """On SIGTERM under load every request that is being read is answered, and nothing stays."""
    publish_toy(tmp_path / "root")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with ExitStack() as opened:
        service = opened.enter_context(
            Workers(tmp_path / "root", tmp_path / "log", TMPDIR=str(temporary))
        )
        held = service.one_of_each(opened)
        pids = [each.pid for each in held]
        [metrics] = temporary.glob("dinserve-*")
        for each in held:
            each.begin()
        with ThreadPoolExecutor(4) as threads:
            loads = [threads.submit(begun_requests, service) for _ in range(4)]
            until(lambda: service.metric("dinserve_requests_total") > 20)
            service.process.terminate()
            until(lambda: service.logs().count("Shutting down") == 2)
            assert [each.finish() for each in held] == [200, 200]
            statuses = [status for load in loads for status in load.result()]
        assert len(statuses) > 20
        assert set(statuses) == {200}
        assert service.process.wait(120) == 0
        assert "Traceback" not in service.logs()
        assert not any(alive(pid) for pid in pids)
        assert not metrics.exists()


def begun_requests(service: Workers) -> list[int]:
    """Requests, each on a connection of its own, until the service has ended: the statuses of
    those that it began to read, 0 for one that was cut off."""
    statuses = []
    while service.process.poll() is None:
        begun = False
        try:
            with service.open() as connection:
                connection.begin()
                begun = True
                statuses.append(connection.finish())
        except (OSError, http.client.HTTPException):
            if begun:
                statuses.append(0)
            time.sleep(0.01)
    return statuses


def test_who_connected_before_the_end_is_served(tmp_path: Path) -> None:
    """Requests that wait in any queue when SIGTERM comes are answered."""
    publish_toy(tmp_path / "root")
    with Workers(tmp_path / "root", tmp_path / "log") as service, ExitStack() as opened:
        pids = [each.pid for each in service.one_of_each(opened)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        request = HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(ASK) + ASK
        waiting = []
        for _ in range(40):
            caller = opened.enter_context(socket.create_connection(("127.0.0.1", service.port), 30))
            caller.sendall(request)
            waiting.append(caller)
        service.process.terminate()
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        for caller in waiting:
            assert caller.makefile("rb").readline() == b"HTTP/1.1 200 OK\r\n"
        assert service.process.wait(120) == 0


def test_workers_end_when_their_supervisor_is_killed(tmp_path: Path) -> None:
    """No orphan keeps serving."""
    publish_toy(tmp_path / "root")
    with Workers(tmp_path / "root", tmp_path / "log") as service, ExitStack() as opened:
        pids = [each.pid for each in service.one_of_each(opened)]
        service.process.kill()
        service.process.wait()
        until(lambda: all(f"Finished server process [{pid}]" in service.logs() for pid in pids))
        assert "Traceback" not in service.logs()


@pytest.mark.parametrize("trouble", ["engine", "port"])
def test_workers_that_cannot_serve_are_one_clear_line(trouble: str, repository: Path) -> None:
    """What keeps the workers from serving ends the command with a line and status 1."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        options = {
            "engine": ["--provider", "cuda", "--port", "0"],
            "port": ["--port", str(taken.getsockname()[1])],
        }[trouble]
        command = [sys.executable, "-m", "service", "serve", "--workers", "2", *options]
        command += ["--repository", str(repository), "--redis-url", NO_REDIS]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    expected = {"engine": "cuda|GPU", "port": "[Aa]ddress already in use"}[trouble]
    assert re.search(f"error: .*{expected}", ended.stderr.splitlines()[-1])


def test_one_process_owns_a_gpu(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA more than one worker is refused, and why is said."""
    monkeypatch.setattr("service.app.pick_provider", lambda asked: "cuda")
    with pytest.raises(EngineError, match="one process owns a GPU"):
        create_app(Settings(repository=repository, workers=2))


def test_the_supervisor_never_loads_the_engine() -> None:
    """The process that only keeps workers has neither onnxruntime nor arrays nor routes."""
    program = """
import sys
import service.__main__, service.supervisor, service.telemetry
heavy = {"onnxruntime", "numpy", "fastapi", "redis"}
print(sorted(heavy & {name.partition(".")[0] for name in sys.modules}))
"""
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("settings", "on_device", "runs"),
    [
        ({}, False, 8),
        ({"workers": 2}, False, 4),
        ({"workers": 2, "threads": 3}, False, 1),
        ({"workers": 16}, False, 1),
        ({}, True, 2),
        ({"runs_side_by_side": 5}, True, 5),
    ],
)
def test_runs_share_the_cores_among_workers(
    settings: dict[str, int], on_device: bool, runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless they are set, runs x threads x workers fill the cores, with a run at least."""
    monkeypatch.setattr("service.settings.cores", lambda: 8)
    monkeypatch.delenv("DINSERVE_RUNS", raising=False)
    assert Settings(**settings).runs(on_device) == runs  # type: ignore[arg-type]
    monkeypatch.setenv("DINSERVE_RUNS", "7")
    assert Settings().runs(on_device) == 7

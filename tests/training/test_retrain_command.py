"""The command: its exit codes, its line of JSON and its metrics."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support import ROOT
from tests.training import days
from tests.training.test_job import command
from training.announce import EXITS, Announcement
from training.lease import Lease
from training.retrain import Outcome
from training.window import Window

SMALL = ("dim=4", "head=[8]", "attention=[6]", "size=256", "epochs=1", "evaluations=1",
         "rate=0.02", "embedding_rate=0.05")  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared logs of three days."""
    folder = tmp_path_factory.mktemp("data")
    days.world(3).write(folder)
    return folder


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The line on stdout, of which there is one."""
    (line,) = capsys.readouterr().out.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def metrics(path: Path) -> dict[tuple[str, ...], float]:
    """Values by name and labels, the model left out."""
    families = text_string_to_metric_families(path.read_text())
    found = {}
    for sample in (each for family in families for each in family.samples):
        assert sample.labels.pop("model") == "synthetic"
        name = sample.name.removeprefix("dinserve_retrain_")
        found[name, *sample.labels.values()] = sample.value
    return found


def test_each_end_has_its_exit_code_and_its_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """10 refused, 11 nothing new, 12 busy, 1 failed, 2 wrong option; one line of JSON on stdout."""
    retrain = ("retrain", "--repository", tmp_path / "repository", "--data", data)
    assert command(*retrain, "--rule", "impressions=1e9") == 2  # a count is a whole number
    assert said(capsys)["error"].startswith("--rule impressions: expected key=number")
    nowhere = ("retrain", "--repository", tmp_path / "repository", "--data", tmp_path / "nowhere")
    assert command(*nowhere) == 1
    assert "nowhere/schema.toml" in said(capsys)["error"]
    for wrong in ("--model", "bogus"), ("--set", "nope=1"):
        never = ("--from", "2020-01-01", "--to", "2020-01-02")
        assert command(*retrain, *wrong, *never) == 2
        assert wrong[1].partition("=")[0] in said(capsys)["error"]
    assert command(*retrain, "--from", "2020-01-02", "--to", "2020-01-01") == 2
    assert said(capsys)["error"] == "--from: expected a day not after 2020-01-01"
    assert not (tmp_path / "repository").exists()
    few = (*retrain, "--rule", "impressions=1000000", "--metrics-file", tmp_path / "job.prom")
    assert command(*few) == 10
    line = said(capsys)
    assert (line["status"], line["model"]) == ("refused", "synthetic")
    assert line["window"] == [str(days.day(-4)), str(days.day(2))]
    assert line["reasons"][0].startswith("too few impressions to tell: ")
    assert (Path(line["report"]) / "report.html").exists()
    assert line["seconds"] > 0
    found = metrics(tmp_path / "job.prom")
    assert {name[1]: value for name, value in found.items() if name[0] == "status"} == {
        status: float(status == "refused") for status in EXITS
    }
    assert command(*few) == 11
    assert said(capsys)["status"] == "nothing_new"
    assert metrics(tmp_path / "job.prom")["status", "nothing_new"] == 1
    with Lease(tmp_path / "repository" / "synthetic" / ".retrain", "lease").held():
        assert command(*few) == 12
        assert "held by process" in said(capsys)["error"]
    assert command(*few, "--name", "shop") == 2
    line = said(capsys)
    assert (line["status"], line["error"]) == (
        "failed",
        "--name: expected synthetic, of which the logs are",
    )
    assert metrics(tmp_path / "job.prom")["status", "failed"] == 1


@pytest.mark.parametrize(
    "option", ["--window-days", "--forget-days", "--label-seconds", "--settle-seconds"]
)
def test_a_time_that_no_date_can_hold_is_a_wrong_option(
    tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused where it is read, not where a date overflows."""
    retrain = ("retrain", "--repository", tmp_path, "--logs", tmp_path)
    assert command(*retrain, option, 10**12) == 2
    assert option in said(capsys)["error"]


@pytest.mark.parametrize("more", [["--nonsense"], ["--set", "nope"], ["--data", "nowhere"]])
def test_the_line_is_the_last_one_of_both_streams(tmp_path: Path, more: list[str]) -> None:
    """As schedulers keep them: after whatever went wrong was told at length."""
    retrain = [sys.executable, "-m", "training", "retrain", "--repository", str(tmp_path), *more]
    where = {**os.environ, "PYTHONPATH": str(ROOT)}
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    ended = subprocess.run(retrain, check=False, cwd=tmp_path, env=where, timeout=300, **both)
    *before, last = ended.stdout.splitlines()
    assert before
    assert json.loads(last)["status"] == "failed"


def test_a_dry_run_says_what_would_be(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 0; the figures are in the line and in the metrics; nothing is published."""
    easy = (
        "gain=-1",
        "ranking=0.5",
        "calibration_low=0.2",
        "calibration_high=5",
        "impressions=100",
    )
    options = [f"--rule={each}" for each in easy] + [f"--set={each}" for each in SMALL]
    retrain = ("retrain", "--repository", tmp_path / "repository", "--data", data, *options)
    path = tmp_path / "job.prom"
    assert command(*retrain, "--dry-run", "--threads", 1, "--metrics-file", path) == 0
    line = said(capsys)
    assert line["status"] == "would_publish"
    assert "version" not in line
    value, low, high = line["metrics"]["candidate"]["ranking"]
    assert low < value < high
    assert metrics(path)["figure", "value", "gauc", "candidate"] == pytest.approx(value)
    assert metrics(path)["impressions",] == line["metrics"]["impressions"]
    assert not (tmp_path / "repository" / "synthetic" / "1").exists()


def test_sigterm_releases_the_lease(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduler that stops the job may start it again at once."""

    def asked_to_stop(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)  # another thread may be the one that is told; no longer than that takes

    monkeypatch.setattr("training.retrain.train", asked_to_stop)
    retrain = ("retrain", "--repository", tmp_path, "--data", data)
    for _ in range(2):
        assert command(*retrain, "--rule", "impressions=100") == 1
        line = said(capsys)
        assert (line["status"], line["error"]) == ("failed", "stopped by SIGTERM")


def test_an_interrupt_is_told(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C ends the job as it ends any other, after the line."""

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("training.retrain.train", interrupted)
    assert command("retrain", "--repository", tmp_path, "--data", data) == 130
    line = said(capsys)
    assert (line["status"], line["error"]) == ("failed", "KeyboardInterrupt")


@pytest.mark.parametrize(
    "arguments",
    [
        "retrain",
        "retrain --nonsense",
        "retrain --repository r surplus",
        "retrain --repository r",
        "retrain --repository r --data d --logs l",
        "retrain --repository r --data d --schema s",
        "retrain --repository r --data d --label-seconds 86400",
        "retrain --repository r --data d --settle-seconds 600",
        "retrain --repository r --data d --from yesterday",
        "retrain --repository r --data d --canary 2",
    ],
)
def test_a_wrong_use_exits_with_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
) -> None:
    """Nothing is written, and it is told in the line too."""
    monkeypatch.chdir(tmp_path)
    assert command(*arguments.split()) == 2
    assert list(tmp_path.iterdir()) == []
    line = said(capsys)
    assert (line["status"], line.keys()) == ("failed", {"status", "model", "error", "seconds"})


@pytest.mark.parametrize(
    ("number", "status", "error"),
    [(signal.SIGTERM, 1, "stopped by SIGTERM"), (signal.SIGINT, 130, "KeyboardInterrupt")],
)
def test_a_job_that_is_stopped_before_it_has_begun_says_so(
    tmp_path: Path, number: int, status: int, error: str
) -> None:
    """While Python still loads what it needs: here its terminal, which waits to be asked."""
    rich = tmp_path / "rich"
    rich.mkdir()
    waits = "import time, pathlib; pathlib.Path('loading').touch(); time.sleep(60)\n"
    (rich / "__init__.py").write_text(waits)
    where = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    retrain = [sys.executable, "-m", "training", "retrain", "--repository", "r", "--data", "d"]
    with subprocess.Popen(retrain, cwd=tmp_path, env=where, stdout=subprocess.PIPE) as job:
        while not (tmp_path / "loading").exists():
            assert job.poll() is None
            time.sleep(0.01)
        job.send_signal(number)
        out, _ = job.communicate(timeout=30)
    line = json.loads(out)
    assert (job.returncode, line["status"], line["error"]) == (status, "failed", error)


@contextmanager
def gateway(answer: int) -> Iterator[tuple[str, list[tuple[str, str, bytes]]]]:
    """A push gateway's address, and what it was sent."""
    received: list[tuple[str, str, bytes]] = []

    class Gateway(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.command, self.path, body))
            self.send_response(answer)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    with HTTPServer(("127.0.0.1", 0), Gateway) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", received
        finally:
            server.shutdown()
            thread.join()


PUBLISHED = Outcome(
    "published", "synthetic", Window(days.day(0), days.day(1)), "0a", 1, True, 2, "stable"
)


@pytest.mark.parametrize("answer", [200, 500])
def test_metrics_are_pushed_where_asked(answer: int) -> None:
    """Grouped by job and model; a gateway that fails is a warning and changes no exit code."""
    lines: list[str] = []
    warnings: list[str] = []
    with gateway(answer) as (url, received):
        told = Announcement("synthetic", lines.append, warnings.append, push_gateway=url)
        assert told.ended(PUBLISHED) == 0
    ((method, path, body),) = received
    assert (method, path) == ("POST", "/metrics/job/dinserve_retrain/model/synthetic")
    assert b'dinserve_retrain_version{model="synthetic"} 2.0' in body
    assert len(warnings) == (answer == 500)
    line = json.loads(lines[0])
    assert (line["version"], line["label"], line["current"]) == (2, "stable", 1)


def test_a_metrics_file_that_cant_be_written_is_a_warning(tmp_path: Path) -> None:
    """The job did its work."""
    warnings: list[str] = []
    path = tmp_path / "no" / "such" / "folder"
    told = Announcement("synthetic", lambda _: None, warnings.append, metrics_file=path)
    assert told.ended(PUBLISHED) == 0
    assert warnings == ["--metrics-file: No such file or directory"]

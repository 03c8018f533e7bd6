"""The scripts behind `make demo` and `make serve`, end to end on a tiny synthetic world."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support import ROOT, free_port, redis_server

SIZES = {"DEMO_USERS": "20", "DEMO_EPOCHS": "1", "DEMO_REQUESTS": "30"}


@contextmanager
def script(module: str, var: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A script of the demo on its own folder, ended when it has not ended by itself."""
    inherited = {k: v for k, v in os.environ.items() if k not in {"DATA", "TEST_USERS", "PORT"}}
    process = subprocess.Popen(
        [sys.executable, "-m", module],
        cwd=ROOT,
        env={**inherited, **SIZES, "DEMO_VAR": str(var), "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=300)


def children(pid: int) -> set[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(each) for each in found}


@pytest.fixture(scope="module")
def var(tmp_path_factory: pytest.TempPathFactory) -> Path:
    redis_server()
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def printed(var: Path) -> str:
    """What a demo of a tiny synthetic world prints."""
    with script("deploy.demo", var) as process:
        output, _ = process.communicate(timeout=1800)
    assert process.returncode == 0, output
    return output


def test_the_last_line_is_what_was_measured(printed: str, var: Path):
    """One JSON object: quality, speed, latency, and where the versions are."""
    figures = json.loads(printed.splitlines()[-1])
    assert set(figures) == {
        "auc", "gauc", "samples_per_s", "p50_ms", "p99_ms", "repository", "data",
    }  # fmt: skip
    assert figures["data"] == "synthetic"
    assert figures["repository"] == str(var / "repository")
    assert 0 <= figures["auc"] <= 1
    assert 0 <= figures["gauc"] <= 1
    assert figures["samples_per_s"] > 0
    assert 0 < figures["p50_ms"] <= figures["p99_ms"]


def test_it_says_how_soon_the_service_was_ready_and_what_it_holds(printed: str):
    """Beside quality, speed and latency, in the table."""
    for name in ("ready", "memory"):
        [row] = re.findall(rf"│ {name} +│ ([\d.]+) +│", printed)
        assert float(row) > 0


def test_it_says_which_data_it_uses_and_leaves_a_version(printed: str, var: Path):
    """The data's name is told, every step is numbered, and the version is published."""
    assert "a synthetic world of 20 users" in printed
    assert all(f"\n{number}/10 " in printed for number in range(1, 11))
    assert "because of (weight)" in printed
    assert (var / "repository" / "synthetic" / "1" / "manifest.json").exists()
    assert (var / "data" / "events.parquet").exists()


@pytest.mark.usefixtures("printed")
def test_serve_answers_the_request_it_prints_and_leaves_no_process(var: Path):
    """`make serve`: its curl line is answered from the stored history; SIGTERM ends all of it."""
    with script("deploy.serve", var, PORT=str(free_port())) as process:
        assert process.stdout is not None
        lines: list[str] = []
        while not lines or not lines[-1].lstrip().startswith("-d "):
            lines.append(process.stdout.readline())
            assert lines[-1], "".join(lines)
        curl = shlex.split("".join(lines[-2:]).replace("\\\n", " "))
        url = next(each for each in curl if each.startswith("http"))
        answer = httpx.post(url, content=curl[-1], timeout=30).json()
        assert answer["degraded"] is None
        assert answer["history_length"] > 0
        assert len(answer["scores"]) == 5
        started = children(process.pid)
        assert len(started) == 2
        process.terminate()
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert not any(Path(f"/proc/{pid}").exists() for pid in started)


def test_a_failing_step_ends_it(tmp_path: Path):
    """A file that is not the archive: said in one line, exit code 1, no JSON."""
    wrong = tmp_path / "ml-1m.zip"
    wrong.write_text("no archive")
    with script("deploy.demo", tmp_path / "var", DATA=str(wrong)) as process:
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "not the archive of MovieLens-1M" in output
    assert not output.splitlines()[-1].startswith("{")


def test_a_port_that_can_not_be_served_on_is_said_first(tmp_path: Path):
    """One that is no port, and one that is taken: whoever has it would answer for the service."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        wrong = {
            "abc": "PORT=abc: expected a number from 1 to 65535",
            "70000": "PORT=70000: expected a number from 1 to 65535",
            port: f"port {port} of 127.0.0.1 is taken",
        }
        for given, said in wrong.items():
            with script("deploy.serve", tmp_path, PORT=given) as process:
                output, _ = process.communicate(timeout=60)
            assert process.returncode == 1
            assert output.startswith(f"Stopped: {said}"), output

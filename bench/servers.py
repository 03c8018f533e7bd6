"""The processes that are measured: a server has one core, all else another. Linux only."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from deploy.processes import HOST, ROOT, free_port

READY_SECONDS = 120.0
STOP_SECONDS = 20.0
# Both sides answer every request in full, however long it waits: REF knows no deadline.
PATIENT = {
    "DINSERVE_TIMEOUT_MS": "60000",
    "DINSERVE_STORE_TIMEOUT_MS": "10000",
    "DINSERVE_DRAIN_SECONDS": "0",
}


class ServerError(RuntimeError):
    """A server that did not start, with the end of its log."""


@dataclass(frozen=True)
class Cores:
    """Where the servers run, and where the load generator and Redis do."""

    server: int
    client: int

    @classmethod
    def found(cls) -> Cores:
        """The last and the first core this process may run on: the same where there is one."""
        allowed = os.sched_getaffinity(0)
        return cls(max(allowed), min(allowed))


@contextmanager
def on(core: int) -> Iterator[None]:
    """This process, and those it starts meanwhile, run on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True)
class Used:
    """CPU seconds so far: of a server, of its first thread (the event loop's), of its core."""

    server: float
    loop: float
    core: float


@dataclass(frozen=True)
class Server:
    """A running server process."""

    port: int
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    core: int

    def used(self) -> Used:
        """To the kernel's tick, mostly 10 ms, but for the loop's, which are exact. What is stolen
        from a virtual core counts as used."""
        folder = Path(f"/proc/{self.process.pid}")
        whole = (folder / "stat").read_text().rpartition(")")[2].split()[11:13]  # user, system
        loop = (folder / f"task/{self.process.pid}/schedstat").read_text().split()[0]
        cores = Path("/proc/stat").read_text().splitlines()
        mine = next(line.split() for line in cores if line.startswith(f"cpu{self.core} "))
        user, nice, system, _idle, _wait, *others = map(int, mine[1:9])
        tick = os.sysconf("SC_CLK_TCK")
        return Used(
            sum(map(int, whole)) / tick,
            int(loop) / 1e9,
            (user + nice + system + sum(others)) / tick,
        )

    def memory_mib(self) -> float:
        """Resident memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024

    def wait(self) -> None:
        """Until it is ready. Raises `ServerError`."""
        deadline = time.monotonic() + READY_SECONDS
        while not self._ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.log.seek(0)
                end = self.log.read()[-4000:].decode(errors="replace")
                raise ServerError(f"{' '.join(map(str, self.process.args))}: not ready\n{end}")  # type: ignore[arg-type]
            time.sleep(0.05)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _ready(self) -> bool:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=5)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def ours(repository: Path, redis_url: str) -> list[str]:
    """The command of the service, without its port."""
    command = ["service", "serve", "--repository", str(repository), "--redis-url", redis_url]
    return [*command, "--threads", "1", "--workers", "1", "--provider", "cpu"]


def reference(folder: Path, redis_url: str, longest: int, *, trim: bool) -> list[str]:
    """The command of REF's service, without its port."""
    command = ["bench.reference_service", str(folder), "--redis-url", redis_url]
    return [*command, "--longest", str(longest), *(["--trim"] if trim else [])]


@contextmanager
def running(
    commands: Mapping[str, list[str]],
    core: int,
    more: Mapping[str, str] | None = None,
    folders: Mapping[str, Path] | None = None,
) -> Iterator[dict[str, Server]]:
    """``python -m command`` for each, on one core, once all are ready; ``more`` is for their
    environment, ``folders`` are the checkouts of those that are not this one's.

    Raises `ServerError`."""
    environment = {**os.environ, **PATIENT, "OMP_WAIT_POLICY": "PASSIVE", **(more or {})}
    with ExitStack() as stack:
        servers = {}
        for name, command in commands.items():
            log = stack.enter_context(tempfile.TemporaryFile())
            port = free_port()
            whole = [sys.executable, "-m", *command, "--port", str(port)]
            place = (folders or {}).get(name, ROOT)
            with on(core):
                process = subprocess.Popen(
                    whole, cwd=place, env=environment, stdout=log, stderr=log
                )
            servers[name] = Server(port, process, log, core)
            stack.callback(servers[name].stop)
        for server in servers.values():
            server.wait()
        yield servers

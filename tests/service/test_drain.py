"""The drain of real processes: not ready first, then no more connections, then the end."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import Settings
from tests.service.proxy import Proxy, message
from tests.support import Service, raw_exchange

NO_REDIS = "redis://127.0.0.1:1/0"
ASK = json.dumps({"user_id": "u", "candidates": ["i1"]}).encode()
HEAD = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
HEAD += b"Content-Length: %d\r\n" % len(ASK)
ROLLS = 20
forms = pytest.mark.parametrize("workers", [1, 2])


def draining(
    repository: Path, tmp_path: Path, workers: int = 1, pause: float = 60, grace: float = 120
) -> Service:
    """A service that drains for so long: by default for longer than any test runs."""
    limits = {"DINSERVE_DRAIN_SECONDS": str(pause), "DINSERVE_GRACE_SECONDS": str(grace)}
    options = ["--workers", str(workers)] if workers > 1 else []
    return Service(repository, NO_REDIS, *options, log=tmp_path / "log", environment=limits)


def until(true: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def readiness(service: Service) -> int:
    """The status of /readyz, on a connection of its own."""
    status, _, _ = raw_exchange(service.port, b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
    return status


def begun(service: Service) -> socket.socket:
    """A request that the service has begun to read, without its body."""
    caller = socket.create_connection(("127.0.0.1", service.port), 30)
    caller.sendall(HEAD + b"Expect: 100-continue\r\n\r\n")
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += caller.recv(1)
    assert answer.startswith(b"HTTP/1.1 100 ")
    return caller


def finished(caller: socket.socket) -> tuple[int, str | None]:
    """The status of the answer, and its Connection header."""
    caller.sendall(ASK)
    answer = http.client.HTTPResponse(caller, method="POST")
    answer.begin()
    answer.read()
    return answer.status, answer.headers["connection"]


@forms
def test_a_service_told_to_end_is_not_ready_and_still_answers(
    workers: int, repository: Path, tmp_path: Path
) -> None:
    """During the pause new connections are served, and every answer closes its own: of requests
    that come now, that were under way, and on connections that lay idle. A second signal ends
    it at once."""
    with draining(repository, tmp_path, workers) as service, ExitStack() as opened:
        idle = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
        idle.request("GET", "/healthz")
        assert idle.getresponse().read()
        under_way = opened.enter_context(begun(service))
        service.process.terminate()
        until(lambda: all(readiness(service) == 503 for _ in range(2 * workers)))
        assert finished(under_way) == (200, "close")
        idle.request("POST", "/score", ASK, {"Content-Type": "application/json"})
        answer = idle.getresponse()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert answer.read()
        idle.close()
        assert finished(opened.enter_context(begun(service))) == (200, "close")
        unready = service.client.get("/readyz")
        assert (unready.status_code, unready.headers["connection"]) == (503, "close")
        assert "about to end" in unready.json()["detail"]
        service.client.close()
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(120) == -signal.SIGINT
    assert "Traceback" not in service.logs()


@forms
def test_what_was_begun_is_answered_after_the_port_is_closed(
    workers: int, repository: Path, tmp_path: Path
) -> None:
    """After the pause connections are refused; a request that is being read is answered, and the
    status is 0."""
    with draining(repository, tmp_path, workers, pause=0.2) as service, ExitStack() as opened:
        under_way = opened.enter_context(begun(service))
        service.process.terminate()

        def refused() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", service.port)) != 0

        until(refused)
        assert service.process.poll() is None
        assert finished(under_way) == (200, "close")
        assert service.process.wait(120) == 0
    assert "Traceback" not in service.logs()


@forms
def test_a_request_that_does_not_end_is_cut_off_by_the_grace(
    workers: int, repository: Path, tmp_path: Path
) -> None:
    """Who never sends its body keeps the service no longer than the grace; the status is 0."""
    with draining(repository, tmp_path, workers, pause=0, grace=1) as service, begun(service):
        service.process.terminate()
        assert service.process.wait(120) == 0


def test_a_worker_that_is_told_to_end_is_replaced(repository: Path, tmp_path: Path) -> None:
    """One that was not told by its supervisor finishes, and another takes its number."""
    with draining(repository, tmp_path, 2, pause=0) as service:
        pids = set[int]()

        def seen(known: set[int]) -> bool:
            with suppress(OSError, http.client.HTTPException):
                status, _, body = raw_exchange(
                    service.port, b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"
                )
                if status == 200:
                    pids.add(json.loads(body)["pid"])
            return len(pids - known) > 0 and len(pids) >= 2

        until(lambda: seen(set()))
        before = set(pids)
        os.kill(min(before), signal.SIGTERM)
        until(lambda: seen(before))
        assert service.process.poll() is None


def test_rolling_restarts_of_two_replicas_fail_no_request(repository: Path, tmp_path: Path) -> None:
    """Under load through a proxy, a replica is added and the oldest of the then three told to end,
    twenty times; all end with status 0."""
    limits = {"DINSERVE_DRAIN_SECONDS": "5", "DINSERVE_GRACE_SECONDS": "60"}
    request = HEAD + b"\r\n" + ASK

    async def call(port: int, statuses: list[int], stop: asyncio.Event) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while not stop.is_set():
            writer.write(request)
            status, _, _ = await message(reader)
            statuses.append(status)
            await asyncio.sleep(0.04)
        writer.close()
        await writer.wait_closed()

    async def scenario(proxy: Proxy) -> tuple[list[int], list[int]]:
        statuses, ended = list[int](), list[int]()
        stop = asyncio.Event()
        replicas: list[tuple[Service, asyncio.Task[None]]] = []
        calling: list[asyncio.Task[None]] = []

        async def add(number: int) -> None:
            log = tmp_path / str(number)
            made = Service(repository, NO_REDIS, log=log, environment=limits)
            replicas.append((made, asyncio.create_task(proxy.watch(made.port))))
            await asyncio.to_thread(made.__enter__)
            while made.port not in proxy.ready:
                await asyncio.sleep(0.01)

        async def remove() -> None:
            oldest, watching = replicas.pop(0)
            oldest.client.close()
            oldest.process.terminate()
            ended.append(await asyncio.to_thread(oldest.process.wait, 120))
            watching.cancel()

        try:
            await asyncio.gather(add(0), add(1))
            calling += [asyncio.create_task(call(proxy.port, statuses, stop)) for _ in range(4)]
            removing = []
            for number in range(ROLLS):
                await add(2 + number)
                removing.append(asyncio.create_task(remove()))
            await asyncio.gather(*removing)
        finally:
            stop.set()
            await asyncio.gather(*calling)
            for replica, watching in replicas:
                watching.cancel()
                await asyncio.to_thread(replica.__exit__)
        return statuses, ended

    async def whole() -> tuple[list[int], list[int]]:
        async with Proxy(every=0.05) as proxy:
            return await scenario(proxy)

    statuses, ended = asyncio.run(whole())
    assert ended == [0] * ROLLS
    assert len(statuses) > 100
    assert set(statuses) == {200}


def test_a_grace_that_ends_before_the_drain_is_refused() -> None:
    """The message names both settings."""
    with pytest.raises(ValidationError, match="grace_seconds is longer than drain_seconds"):
        Settings(drain_seconds=5, grace_seconds=5)

"""The containers' health check."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tests.support import ROOT, free_port


@contextmanager
def answering(status: int) -> Iterator[int]:
    """A server that answers /readyz so, and everything else with 404; its port."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def check(port: int, path: str) -> int:
    command = [sys.executable, "-S", str(ROOT / "deploy/healthy.py"), str(port), path]
    return subprocess.run(command, check=False, timeout=30).returncode


@pytest.mark.parametrize(
    ("status", "path", "code"), [(200, "/readyz", 0), (503, "/readyz", 1), (200, "/", 1)]
)
def test_only_an_answer_of_200_is_healthy(status: int, path: str, code: int) -> None:
    """Everything else is exit status 1."""
    with answering(status) as port:
        assert check(port, path) == code


def test_no_answer_is_not_healthy() -> None:
    """Nobody listens there."""
    assert check(free_port(), "/readyz") == 1

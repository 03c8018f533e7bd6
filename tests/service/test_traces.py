"""Traces, as a collector that speaks OTLP over HTTP receives them from a real service."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from service.settings import Settings
from tests.service.test_workers import NO_REDIS
from tests.support import ROOT, Service, running_redis

FOREIGN = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
SECRET = "s3cr3t"
ASK = {"user_id": f"{SECRET}-user", "candidates": ["i1", f"{SECRET}-item"]}


def needs_the_extra() -> None:
    if importlib.util.find_spec("opentelemetry.exporter") is None:
        if os.environ.get("CI"):
            pytest.fail("no OpenTelemetry: install the dev extra")
        pytest.skip("no OpenTelemetry: install the extra traces")


class Collector:
    """Takes OTLP over HTTP, as protobuf. While ``deaf`` it takes requests and never answers."""

    def __init__(self, deaf: bool = False) -> None:
        self.spans: list[Any] = []
        self.resources: list[Mapping[str, str]] = []
        self.closed = threading.Event()
        collector = self

        class Receiver(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if deaf:
                    collector.closed.wait(60)
                else:
                    assert self.path == "/v1/traces"
                    assert self.headers["Content-Type"] == "application/x-protobuf"
                    collector.take(body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def take(self, body: bytes) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
            ExportTraceServiceRequest,
        )

        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append(attributes(resource.resource))
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]

    def of(self, request_id: str) -> dict[str, Any]:
        """The spans of a request, by name; waits until the server's has come."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            for span in list(self.spans):
                if attributes(span).get("dinserve.request_id") == request_id:
                    same = [each for each in self.spans if each.trace_id == span.trace_id]
                    return {each.name: each for each in same}
            time.sleep(0.02)
        raise AssertionError(f"no span of {request_id}")


def attributes(of: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in of.attributes}


@contextmanager
def listening(deaf: bool = False) -> Iterator[Collector]:
    needs_the_extra()
    collector = Collector(deaf)
    thread = threading.Thread(target=collector.server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield collector
    finally:
        collector.closed.set()
        collector.server.shutdown()
        thread.join()
        collector.server.server_close()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with listening() as found:
        yield found


@pytest.fixture(scope="module")
def traced(
    repository: Path, collector: Collector, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A service with a Redis of its own that sends its spans at once."""
    folder = tmp_path_factory.mktemp("traced")
    environment = {"DINSERVE_TRACES": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "50"}
    with (
        running_redis(folder) as redis,
        Service(repository, redis.url, log=folder / "log", environment=environment) as running,
    ):
        yield running


def test_a_request_is_one_span_and_one_for_each_stage(
    traced: Service, collector: Collector
) -> None:
    """Redis, encoding, queue and model follow one another within the server's span, which goes on
    with the caller's trace."""
    parent = {"traceparent": f"00-{FOREIGN}-{CALLER}-01", "X-Request-ID": "whole"}
    answer = traced.client.post("/score", json=ASK, headers=parent)
    assert answer.status_code == 200
    spans = collector.of("whole")
    assert set(spans) == {"POST /score", "redis", "encode", "queue", "model"}
    server = spans.pop("POST /score")
    assert server.trace_id.hex() == FOREIGN
    assert server.parent_span_id.hex() == CALLER
    assert server.kind == 2
    told = attributes(server)
    assert told["http.response.status_code"] == 200
    assert told["http.route"] == "/score"
    at = server.start_time_unix_nano
    assert abs(at / 1e9 - time.time()) < 60
    for name in ("redis", "encode", "queue", "model"):
        span = spans[name]
        assert span.parent_span_id == server.span_id
        assert at <= span.start_time_unix_nano <= span.end_time_unix_nano
        at = span.end_time_unix_nano
    assert at <= server.end_time_unix_nano
    assert spans["redis"].kind == 3
    assert attributes(spans["redis"])["db.system.name"] == "redis"
    model = attributes(spans["model"])
    assert (model["dinserve.model"], model["dinserve.version"]) == ("toy", 1)
    assert model["dinserve.call.requests"] == 1
    assert {each["service.name"] for each in collector.resources} == {"dinserve"}


def test_a_caller_who_does_not_sample_is_obeyed(traced: Service, collector: Collector) -> None:
    """Of a trace whose flag is off nothing is sent; a request without a caller's trace begins
    one."""
    unsampled = {"traceparent": f"00-{FOREIGN}-{CALLER}-00", "X-Request-ID": "unsampled"}
    assert traced.client.post("/score", json=ASK, headers=unsampled).status_code == 200
    assert traced.client.get("/readyz", headers={"X-Request-ID": "probe"}).status_code == 200
    traced.client.post("/score", json=ASK, headers={"X-Request-ID": "after"})
    assert not collector.of("after")["POST /score"].parent_span_id
    known = {attributes(span).get("dinserve.request_id") for span in collector.spans}
    assert not known & {"unsampled", "probe"}


def test_no_span_names_a_user_or_an_item(traced: Service, collector: Collector) -> None:
    """Not the path of an erasure, a query, or what no route takes; events have a Redis span."""
    event = {"user_id": f"{SECRET}-user", "item_id": f"{SECRET}-item", "action": "click"}
    event["ts"] = int(time.time())  # type: ignore[assignment]
    asked = {"X-Request-ID": "event"}
    assert traced.client.post("/events", json=event, headers=asked).status_code == 200
    assert set(collector.of("event")) == {"POST /events", "redis"}
    gone = {"X-Request-ID": "gone"}
    assert traced.client.delete(f"/users/{SECRET}?{SECRET}", headers=gone).status_code == 200
    assert "DELETE /users/{user_id:path}" in collector.of("gone")
    nowhere = {"X-Request-ID": "nowhere"}
    assert traced.client.get(f"/{SECRET}", headers=nowhere).status_code == 404
    assert set(collector.of("nowhere")) == {"GET"}
    assert SECRET not in str(collector.spans)


def test_what_goes_wrong_is_an_error_of_its_span(
    repository: Path, collector: Collector, tmp_path: Path
) -> None:
    """A store that fails is the Redis span's, and the request is well; a refused event is the
    server's. The standard variable is enough, and its names of the service hold."""
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"{collector.url}/",
        "OTEL_SERVICE_NAME": "ads",
    }
    with Service(repository, NO_REDIS, log=tmp_path / "log", environment=environment) as service:
        service.client.post("/score", json=ASK, headers={"X-Request-ID": "degraded"})
        event = {"user_id": "u", "item_id": "i1", "action": "click", "ts": 1_795_305_600}
        service.client.post("/events", json=event, headers={"X-Request-ID": "lost"})
    # What waited was sent when the service ended.
    spans = collector.of("degraded")
    assert spans["redis"].status.code == 2
    assert attributes(spans["redis"])["error.type"] == "history_unavailable"
    assert spans["POST /score"].status.code == 0
    lost = collector.of("lost")
    assert attributes(lost["POST /events"])["error.type"] == "503"
    assert lost["POST /events"].status.code == 2
    assert attributes(lost["redis"])["error.type"] == "Unavailable"
    assert "ads" in {each["service.name"] for each in collector.resources}


def test_a_body_that_is_not_read_has_its_route(traced: Service, collector: Collector) -> None:
    """The span knows where a request went, though nothing of it was looked at."""
    headers = {"X-Request-ID": "unread", "Content-Type": "text/plain"}
    answer = traced.client.post("/score/columns", content=b"x", headers=headers)
    assert answer.status_code == 415
    [span] = collector.of("unread").values()
    assert span.name == "POST /score/columns"
    assert attributes(span)["http.route"] == "/score/columns"


def test_a_collector_that_hangs_holds_nothing_up(repository: Path, tmp_path: Path) -> None:
    """Requests are answered, and the service ends in order, though nobody takes its spans."""
    with listening(deaf=True) as deaf:
        environment = {"DINSERVE_TRACES": deaf.url, "OTEL_EXPORTER_OTLP_TIMEOUT": "60"}
        log = tmp_path / "log"
        with Service(repository, NO_REDIS, log=log, environment=environment) as service:
            for _ in range(3):
                assert service.score(**ASK).status_code == 200
        assert service.process.returncode in {0, -15}  # not killed


def test_without_a_collector_nothing_is_imported(repository: Path) -> None:
    """Neither tracing nor exporter is loaded; with one and without the packages the start says
    what is missing."""
    program = f"""
import sys
from pathlib import Path
from service.app import create_app
from service.settings import Settings
create_app(Settings(repository=Path({str(repository)!r}), redis_url={NO_REDIS!r}))
names = ("opentelemetry.sdk.trace", "opentelemetry.exporter", "google.protobuf")
print(sorted(name for name in names if name in sys.modules))
sys.modules["opentelemetry.sdk.trace"] = sys.modules["opentelemetry.exporter"] = None
try:
    create_app(Settings(redis_url={NO_REDIS!r}, traces="http://127.0.0.1:1"))
except ValueError as error:
    print(error)
"""
    hidden = {"DINSERVE_TRACES", "OTEL_EXPORTER_OTLP_ENDPOINT"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    command = [sys.executable, "-c", program]
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    first, second = ended.stdout.splitlines()
    assert first == "[]"
    assert second.startswith("traces: the packages are missing")


def test_the_service_s_own_variable_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """DINSERVE_TRACES over OTEL_EXPORTER_OTLP_ENDPOINT; neither is no tracing."""
    monkeypatch.delenv("DINSERVE_TRACES", raising=False)
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    assert Settings().traces is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://standard:4318")
    assert Settings().traces == "http://standard:4318"
    monkeypatch.setenv("DINSERVE_TRACES", "http://own:4318")
    assert Settings().traces == "http://own:4318"

"""Traces: spans of requests for an OpenTelemetry collector, where one is configured.

The stages of a request are measured anyway; their spans are made of these times afterwards. So
without a collector nothing is wrapped, imported or paid for. No user or item id is ever part of a
span: a route is told by its template, never by its path.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter, time_ns
from types import TracebackType
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_TRACE = "dinserve.trace"
_UNTRACED = {"/healthz", "/readyz", "/metrics"}
_REQUEST_ID = b"x-request-id"
_LEAVE_SECONDS = 2.0


class TracesError(ValueError):
    """Why traces can't be sent, in words for the user."""


class Traces:
    """Sends spans as OTLP over HTTP; `async with` ends with those that still wait.

    ``collector``: its URL, without ``/v1/traces``. The environment's OTEL_SERVICE_NAME,
    OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER, OTEL_BSP_... and OTEL_EXPORTER_OTLP_... hold as
    OpenTelemetry specifies them. Raises `TracesError` where its packages are missing.
    """

    def __init__(self, collector: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            raise TracesError(
                "traces: the packages are missing; install the extra, pip install '.[traces]'"
            ) from None
        own = Resource.create({"service.name": "dinserve"})
        provider = TracerProvider(
            resource=own.merge(OTELResourceDetector().detect()), shutdown_on_exit=False
        )
        exporter = OTLPSpanExporter(endpoint=f"{collector.rstrip('/')}/v1/traces")
        provider.add_span_processor(BatchSpanProcessor(exporter))
        self._provider = provider
        self.tracer = provider.get_tracer("dinserve")

    async def __aenter__(self) -> Traces:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A collector that hangs must not hold up the end: whoever waits for it is a daemon.
        leaving = threading.Thread(target=self._provider.shutdown, daemon=True)
        leaving.start()
        await asyncio.to_thread(leaving.join, _LEAVE_SECONDS)


class Trace:
    """The spans of one request: the server's, and one for each of its stages."""

    def __init__(self, tracer: Any, scope: Scope) -> None:
        from opentelemetry.trace import SpanKind, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        self.route: str | None = None
        """The route's template, where no router knows it."""
        self._tracer, self._scope = tracer, scope
        self._clock = time_ns() - int(perf_counter() * 1e9)
        self._span = tracer.start_span(
            scope["method"],
            context=TraceContextTextMapPropagator().extract(headers),
            kind=SpanKind.SERVER,
            attributes={
                "http.request.method": scope["method"],
                "url.scheme": scope["scheme"],
                "network.protocol.version": scope["http_version"],
            },
        )
        self._within = set_span_in_context(self._span)

    def stage(
        self, name: str, begin: float, end: float, error: str | None = None, **attributes: Any
    ) -> None:
        """A stage from ``begin`` to ``end`` of `perf_counter`; ``error``: what went wrong."""
        from opentelemetry.trace import SpanKind, StatusCode

        if not self._span.is_recording():
            return
        kind = SpanKind.INTERNAL
        if name == "redis":
            kind, attributes = SpanKind.CLIENT, {"db.system.name": "redis", **attributes}
        span = self._tracer.start_span(
            name, self._within, kind, attributes, start_time=self._clock + int(begin * 1e9)
        )
        if error is not None:
            span.set_attribute("error.type", error)
            span.set_status(StatusCode.ERROR)
        span.end(self._clock + int(end * 1e9))

    def begun(self, answer: Message) -> None:
        """The answer's head is known."""
        self._span.set_attribute("http.response.status_code", answer["status"])
        for name, value in answer.get("headers", ()):
            if name.lower() == _REQUEST_ID:
                self._span.set_attribute("dinserve.request_id", value.decode("latin-1"))
        if answer["status"] >= 500:
            self._failed(str(answer["status"]))

    def ended(self, error: BaseException | None) -> None:
        """The answer is sent, or ``error`` came before that."""
        route = self.route or _route(self._scope)
        if route is not None:
            self._span.update_name(f"{self._scope['method']} {route}")
            self._span.set_attribute("http.route", route)
        if error is not None:
            self._failed(type(error).__name__)
        self._span.end()

    def _failed(self, kind: str) -> None:
        from opentelemetry.trace import StatusCode

        self._span.set_attribute("error.type", kind)
        self._span.set_status(StatusCode.ERROR)


class Traced:
    """An ASGI application whose requests, those of probes aside, are traced."""

    def __init__(self, app: ASGIApp, traces: Traces) -> None:
        self._app, self._traces = app, traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _UNTRACED:
            await self._app(scope, receive, send)
            return
        trace = scope[_TRACE] = Trace(self._traces.tracer, scope)

        async def telling(message: Message) -> None:
            if message["type"] == "http.response.start":
                trace.begun(message)
            await send(message)

        failed: BaseException | None = None
        try:
            await self._app(scope, receive, telling)
        except BaseException as error:
            failed = error
            raise
        finally:
            trace.ended(failed)


def trace_of(scope: Scope) -> Trace | None:
    """A request's trace, where there is one."""
    trace: Trace | None = scope.get(_TRACE)
    return trace


@contextmanager
def staged(scope: Scope, name: str) -> Iterator[None]:
    """Trace what is done within as a stage of a request."""
    begin, failed = perf_counter(), None
    try:
        yield
    except Exception as error:
        failed = type(error).__name__
        raise
    finally:
        trace = trace_of(scope)
        if trace is not None:
            trace.stage(name, begin, perf_counter(), failed)


def _route(scope: Scope) -> str | None:
    """The template of the route that a request took; None where there is none."""
    if "endpoint" not in scope:
        return None
    path: str | None = getattr(scope.get("route"), "path", None)
    # A plain route without parameters is its own template.
    return path or (None if scope["path_params"] else scope["path"])

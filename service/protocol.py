"""The HTTP protocol: uvicorn's, which refuses what is no request as everything is refused, by a
problem (RFC 9457), and collects no head without end."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import Request
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.problems import problem_response

MAX_HEAD_BYTES = 64 * 1024


class HttpProtocol(HttpToolsProtocol):
    """One connection's."""

    _head: int | None = None  # bytes so far of a request's line and headers, while they come

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head is None or self.transport.is_closing():
            return
        self._head += len(data)
        if self._head > MAX_HEAD_BYTES:
            self._refuse(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                f"expected a request line and headers of at most {MAX_HEAD_BYTES} bytes",
            )

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head = 0

    def on_headers_complete(self) -> None:
        self._head = None
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(HTTPStatus.BAD_REQUEST, "expected a request in HTTP/1.1")

    def _refuse(self, status: HTTPStatus, detail: str) -> None:
        """Answer without the application, and end the connection."""
        unread = Request({"type": "http", "headers": []})
        answer = problem_response(unread, status, status.phrase, detail)
        headers = [*self.server_state.default_headers, *answer.raw_headers]
        lines = [b"HTTP/1.1 %d %s" % (status, status.phrase.encode())]
        lines += [b"%s: %s" % header for header in headers if header[0] != b"connection"]
        head = b"\r\n".join([*lines, b"connection: close", b"", b""])
        self.transport.write(head + bytes(answer.body))
        self.transport.close()

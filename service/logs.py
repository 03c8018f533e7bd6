"""Logs: every log line of the process as one JSON object on standard error.

No user or item id is ever part of a line. What is logged while a request is answered has its id.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from contextvars import ContextVar

# The request that the current task answers; tasks and threads that it starts have it too.
REQUEST: ContextVar[str | None] = ContextVar("request_id", default=None)


class JsonLines(logging.Formatter):
    """One JSON object per log line: time, level, logger, message, and a traceback if any; the
    worker's number where there are several, the request's id where it is about one."""

    def __init__(self, worker: int | None = None) -> None:
        super().__init__()
        self._worker = {} if worker is None else {"worker": worker}

    def format(self, record: logging.LogRecord) -> str:
        request = REQUEST.get()
        instant = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{instant}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            **self._worker,
            **({} if request is None else {"request_id": request}),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def log_as_json(level: int = logging.INFO, worker: int | None = None) -> None:
    """Send every log of the process to standard error as JSON lines."""
    output = logging.StreamHandler(sys.stderr)
    output.setFormatter(JsonLines(worker))
    logging.basicConfig(level=level, handlers=[output], force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)

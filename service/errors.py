"""The errors a caller may see: each class holds its HTTP status, each instance says what is wrong.

::

    Problem
    ├── Malformed        400  the body is no JSON
    ├── Invalid          422  a field is not what it should be; `field` names it
    ├── Unauthorized     401  the admin API's key is missing or another one
    ├── Missing          404  no such version
    ├── Conflict         409  the labels, or the version itself, do not allow what is asked
    ├── BodyTimeout      408  the body did not arrive
    ├── BodyTooLarge     413
    ├── NotJson          415
    ├── Internal         500  ours: the traceback is in the log, under the request id
    ├── Unavailable      503  not now; `retry_after` seconds
    │   ├── NotReady          no verified model yet
    │   ├── Overloaded        too much work is waiting
    │   └── Stopped           the batcher does not run
    └── DeadlineExceeded 504  the caller's time is over

No detail ever holds a value that the caller sent: it may be personal, and it may be hostile.
"""

from __future__ import annotations

from typing import ClassVar, Literal

# Where a request's time may end: while its body came, while its features were read and encoded,
# while it waited for the model, while that ran.
Stage = Literal["body", "features", "queue", "model"]
STAGES: tuple[Stage, ...] = ("body", "features", "queue", "model")


class Problem(Exception):  # noqa: N818 (the word of RFC 9457)
    """An answer other than 200, as application/problem+json (RFC 9457)."""

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"

    def __init__(
        self, detail: str = "", field: str | None = None, *, retry_after: float | None = None
    ) -> None:
        super().__init__(detail or self.title)
        self.detail, self.field, self.retry_after = detail or self.title, field, retry_after


class Malformed(Problem):
    status, title = 400, "Malformed JSON"


class Invalid(Problem):
    status, title = 422, "Invalid request"


class Unauthorized(Problem):
    status, title = 401, "Unauthorized"


class Missing(Problem):
    status, title = 404, "Not found"


class Conflict(Problem):
    status, title = 409, "Conflict"


class BodyTimeout(Problem):
    status, title = 408, "The body did not arrive in time"


class BodyTooLarge(Problem):
    status, title = 413, "Body too large"


class NotJson(Problem):
    status, title = 415, "Unsupported media type"


class Internal(Problem):
    """Something of ours failed."""


class Unavailable(Problem):
    status, title = 503, "Unavailable"
    reason: ClassVar[str] = "unavailable"
    """Why, in a word, for metrics."""

    def __init__(self, detail: str = "", *, retry_after: float = 1.0) -> None:
        super().__init__(detail, retry_after=retry_after)


class NotReady(Unavailable):
    title, reason = "Not ready", "not_ready"


class Overloaded(Unavailable):
    title, reason = "Overloaded", "overloaded"


class Stopped(Unavailable):
    title, reason = "Stopped", "stopped"


class DeadlineExceeded(Problem):
    status, title = 504, "Deadline exceeded"

    def __init__(self, detail: str, stage: Stage) -> None:
        super().__init__(detail)
        self.stage = stage


SHED = tuple(each.reason for each in (NotReady, Overloaded, Stopped))

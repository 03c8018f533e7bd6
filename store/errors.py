"""What went wrong with the store, in words for its operators that hold no secret."""

from __future__ import annotations

import ssl

from store.topology import TopologyError


def in_words(error: BaseException) -> str:
    """The kind of an error, and what TLS, the system or a Sentinel said that led to it. Redis' own
    words, which may name keys, are left out."""
    kind = type(error).__name__
    cause: BaseException | None = error
    while cause is not None:
        said = _said(cause)
        if said:
            return f"{kind} ({said})"
        cause = cause.__cause__ or cause.__context__
    return kind


def _said(error: BaseException) -> str | None:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is refused: {error.verify_message}"
    if isinstance(error, TopologyError):
        return str(error)
    return error.strerror if isinstance(error, OSError) else None

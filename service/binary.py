"""The binary form: keys in, probabilities out, little endian, for callers that want no JSON.

Request, ``Content-Type: application/vnd.dinserve``::

    0   4s      b"DIN1"
    4   uint32  candidates N
    8   uint32  timeout in milliseconds, 0 for the service's own
    12  uint32  bytes of the user's id
    16  ...     the user's id, UTF-8, padded with zeros to a multiple of 8
    ..  uint64  N keys of items: xxh3_64 of the id's UTF-8 text, 1 where that is 0

Answer::

    0   4s      b"DIN1"
    4   uint32  candidates N
    8   uint32  tasks M
    12  uint32  behaviours that were looked at
    16  uint64  version of the model
    24  uint32  1: without history, 2: without profile, because the store did not answer; else 0
    28  uint32  number of unknown items K
    32  float32 M x N probabilities, task by task
    ..  uint32  K positions of unknown items

Fields of items come from the catalogue, the history and the user's fields from the store.
"""

from __future__ import annotations

import struct

import numpy as np

from model.contract.schema import Schema
from service.errors import Invalid
from service.features import HISTORY_UNAVAILABLE, PROFILE_UNAVAILABLE
from service.wire import MAX_CANDIDATES, MAX_TIMEOUT_MS, Answer, Ask, Form, user_text

MEDIA_TYPE = "application/vnd.dinserve"
MAGIC = b"DIN1"
_REQUEST = struct.Struct("<4sIII")
_ANSWER = struct.Struct("<4sIIIQII")
_DEGRADED = {None: 0, HISTORY_UNAVAILABLE: 1, PROFILE_UNAVAILABLE: 2}


def read(body: bytes, schema: Schema) -> Ask:
    """A request in binary. Raises `Invalid`."""
    if len(body) < _REQUEST.size or body[:4] != MAGIC:
        raise Invalid("Expected a header that begins with DIN1", "body")
    _, count, timeout_ms, size = _REQUEST.unpack_from(body)
    if not 1 <= count <= MAX_CANDIDATES:
        raise Invalid(f"Expected 1 to {MAX_CANDIDATES}", "candidates")
    if timeout_ms > MAX_TIMEOUT_MS:
        raise Invalid(f"Expected at most {MAX_TIMEOUT_MS}", "timeout_ms")
    begin = _REQUEST.size + -(-size // 8) * 8
    if len(body) != begin + 8 * count:
        raise Invalid("Expected as many bytes as the header says", "body")
    try:
        user = body[_REQUEST.size : _REQUEST.size + size].decode()
    except UnicodeDecodeError:
        raise Invalid("Expected valid Unicode text", "user_id") from None
    keys = np.frombuffer(body, "<u8", count, begin).astype(np.uint64)
    if not keys.all():
        raise Invalid("Expected no key of 0", f"candidates[{int(keys.argmin())}]")
    return Ask(user=user_text(user), candidates=keys, timeout_ms=timeout_ms or None)


def write(asked: Ask, answer: Answer) -> bytes:
    """The answer of a binary request."""
    unknown = answer.unknown.astype("<u4")
    count, tasks = answer.probability.shape
    degraded, version = _DEGRADED[answer.degraded], answer.version
    header = (MAGIC, count, tasks, answer.history_length, version, degraded, len(unknown))
    probability = np.ascontiguousarray(answer.probability.T, "<f4")
    return _ANSWER.pack(*header) + probability.tobytes() + unknown.tobytes()


BINARY = Form(MEDIA_TYPE, read, write)

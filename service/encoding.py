"""Encoding: a request that was asked, with what the store knows, in the arrays of one version."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from model.contract.batch import Batch
from model.contract.encode import Encoder, FieldError, Request
from service.features import PROFILE_UNAVAILABLE, Stored
from service.wire import Ask

Known = npt.NDArray[np.bool_]


class Encoded(NamedTuple):
    """The batch, which candidates are known, what was encoded, and what of the store was used."""

    batch: Batch
    known: Known
    request: Request
    stored: Stored


def encode(asked: Ask, stored: Stored, encoder: Encoder) -> Encoded:
    """A request for one version.

    ``stored.history`` is in the encoder's layout. Raises `FieldError`.
    """
    history = stored.history if asked.history is None else encoder.records(asked.history)
    request = Request(
        candidates=asked.candidates,
        history=history,
        user={**stored.profile, **asked.overrides},
        context=asked.context,
        given=asked.given,
        columns=asked.columns,
    )
    try:
        batch, known = encoder.encode(request)
    except FieldError as error:
        group, _, name = error.field.partition(".")
        if group != "user" or name in asked.overrides:
            raise
        # The stored profile does not fit this model; the caller can't help it.
        stored = replace(stored, profile={}, degraded=stored.degraded or PROFILE_UNAVAILABLE)
        request = replace(request, user=asked.overrides)
        batch, known = encoder.encode(request)
    return Encoded(batch, known, request, stored)

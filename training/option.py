"""Options that several commands have, and what a command was asked for and can't be."""

from __future__ import annotations

from typing import Annotated

import typer

Seed = Annotated[
    int, typer.Option(min=0, max=2**64 - 1, help="Same seed, same weights, bit for bit.")
]
Threads = Annotated[int, typer.Option(min=1, max=256, help="CPU threads (results depend on it).")]


class OptionError(ValueError):
    """An option, model, rule or column that does not exist, or a value that it can't have."""

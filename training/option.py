"""What a command was asked for and can't be."""

from __future__ import annotations


class OptionError(ValueError):
    """An option, model, rule or column that does not exist, or a value that it can't have."""

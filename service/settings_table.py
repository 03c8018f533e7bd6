"""The settings as a table in Markdown: what docs/settings.md shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import AliasChoices
from pydantic.fields import FieldInfo

from service.settings import Settings

_UNITS = {
    "seconds": "s",
    "ms": "ms",
    "days": "days",
    "bytes": "bytes",
    "pairs": "pairs",
    "share": "0 to 1",
    "band": "0 to 1",
}


def table() -> str:
    """A row for each setting: its variable, its default, its unit, what it means."""
    rows = [("variable", "default", "unit", "meaning"), ("---", "---", "---", "---"), *_rows()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def variable(name: str, field: FieldInfo) -> str:
    """The environment variable of a setting; the first of several."""
    alias = field.validation_alias
    if isinstance(alias, AliasChoices):
        alias = str(alias.choices[0])
    return alias if isinstance(alias, str) else f"DINSERVE_{name}".upper()


def _rows() -> Iterator[tuple[str, str, str, str]]:
    for name, field in Settings.model_fields.items():
        unit = _UNITS.get(name.rpartition("_")[2], "")
        meaning = (field.description or "").replace("|", "\\|")
        yield f"`{variable(name, field)}`", _shown(field.default), unit, meaning


def _shown(default: Any) -> str:
    if default is None:
        return "unset"
    if isinstance(default, bool):
        return f"`{int(default)}`"
    if isinstance(default, float):
        return f"`{default:g}`"
    return f"`{default}`"

"""What the service's commands share: options, the settings made of them, and their one error."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from service.settings import Settings


def default(setting: str) -> str:
    """What help says an option is where it is not given; typer would take ``[default: ...]`` in a
    help text for markup, and drop it."""
    return str(Settings.model_fields[setting].default)


Root = Annotated[
    Path | None,
    typer.Option(
        "--repository", help="Folder of published models.", show_default=default("repository")
    ),
]
Name = Annotated[str | None, typer.Option(help="The model.", show_default="the one published last")]


class CommandError(Exception):
    """What the user has to know, in one line."""

    status = 1


class OptionError(CommandError):
    """An option or a setting that can't have its value."""

    status = 2


def settings_of(**given: Any) -> Settings:
    """The settings with these in place of the environment's; None is not given.

    Raises `OptionError`.
    """
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])  # "" where it is about several
        why = first["msg"].removeprefix("Value error, ")  # pydantic's own words for ours
        raise OptionError(": ".join(filter(None, (field, why)))) from None

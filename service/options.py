"""What the service's commands share: options, the settings made of them, and their one error."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from service.settings import Settings

Root = Annotated[
    Path | None,
    typer.Option("--repository", help="Folder of published models. [default: var/repository]"),
]
Name = Annotated[
    str | None, typer.Option(help="The model. Not needed when the repository has one only.")
]


class CommandError(Exception):
    """What the user has to know, in one line."""


def settings_of(**given: Any) -> Settings:
    """The settings with these in place of the environment's; None is not given.

    Raises `CommandError`.
    """
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])  # "" where it is about several
        raise CommandError(": ".join(filter(None, (field, first["msg"])))) from None

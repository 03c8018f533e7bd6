"""The form of all command lines: what is unknown is refused with the choices that there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class Command(TyperCommand):
    """A command whose error for an unknown option names those that it has."""

    def parse_args(self, *given: Any) -> Any:
        try:
            return super().parse_args(*given)
        except Exception as raised:
            error: Any = raised
            if hasattr(error, "possibilities"):  # an option that there is not
                names = [name for each in self.params for name in each.opts]
                error.possibilities = [name for name in names if name.startswith("--")]
            raise


class _Group(TyperGroup):
    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            ctx.fail(f"No such command {args[0]!r}. (Commands: {', '.join(self.commands)})")
        return super().resolve_command(ctx, args)


class Commands(typer.Typer):
    """The commands of ``python -m PACKAGE``."""

    def __init__(self, help: str) -> None:
        super().__init__(
            cls=_Group,
            help=help,
            no_args_is_help=True,
            add_completion=False,
            pretty_exceptions_enable=False,
        )

    def command(self, name: str | None = None, **how: Any) -> Callable[[Decorated], Decorated]:
        """As of any `typer.Typer`."""
        return super().command(name, **{"cls": Command, **how})

"""The commands that list and label versions: models, promote, rollback, pin, canary, shadow, admin.

A running service follows the labels within its ``poll_seconds``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from service.options import CommandError, Name, OptionError, Root, default, settings_of

if TYPE_CHECKING:
    from model.contract.labels import Labels
    from service.versions import Versions

Version = Annotated[int, typer.Argument(min=0, help="A published version.")]
MaybeVersion = Annotated[int | None, typer.Argument(min=0, help="A published version.")]
Why = Annotated[str, typer.Option(help="A reason, for the log of changes.")]
Share = Annotated[float | None, typer.Option(min=0, max=1, help="From 0 to 1.")]
Off = Annotated[bool, typer.Option("--off", help="End it.")]


def add_to(app: typer.Typer) -> None:
    """Make these the application's commands too."""
    for command in (models, promote, rollback, pin, unpin, follow, canary, shadow, admin):
        app.command()(command)


def models(
    repository: Root = None,
    name: Name = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the published versions: labels, age, traffic, metrics, whether each can be served."""
    import json
    import time

    from service import listing

    with _versions(repository, name) as versions:
        if as_json:
            found = [each.document(time.time()) for each in versions.listed()]
            sys.stdout.write(json.dumps(found, indent=1) + "\n")
        else:
            listing.print_versions(versions)


def promote(version: Version, repository: Root = None, name: Name = None, why: Why = "") -> None:
    """Make a version the stable one. A canary that is promoted ends as such."""
    _change(repository, name, lambda versions: versions.promote(version, why))


def rollback(repository: Root = None, name: Name = None, why: Why = "") -> None:
    """Make the stable version before this one stable again; it stays so until another is."""
    _change(repository, name, lambda versions: versions.rollback(why))


def pin(version: Version, repository: Root = None, name: Name = None, why: Why = "") -> None:
    """Make a version stable for all traffic, and hold it: nothing else is promoted until unpin."""
    _change(repository, name, lambda versions: versions.pin(version, why))


def unpin(repository: Root = None, name: Name = None, why: Why = "") -> None:
    """Release a pinned version; it stays the stable one."""
    _change(repository, name, lambda versions: versions.file.unpin(why))


def follow(repository: Root = None, name: Name = None, why: Why = "") -> None:
    """Serve the newest valid version again, as it is without labels."""
    _change(repository, name, lambda versions: versions.file.follow(why))


def canary(
    version: MaybeVersion = None,
    repository: Root = None,
    name: Name = None,
    share: Share = None,
    off: Off = False,
    why: Why = "",
) -> None:
    """Give a version a share of the users: always the same ones. --off ends it."""
    if off and version is None and share is None:
        _change(repository, name, lambda versions: versions.file.stop_canary(why))
    elif off or version is None or share is None:
        raise OptionError("canary: a version and --share expected, or --off")
    else:
        _change(repository, name, lambda versions: versions.canary(version, share, why))


def shadow(
    version: MaybeVersion = None,
    repository: Root = None,
    name: Name = None,
    share: Share = None,
    off: Off = False,
    why: Why = "",
) -> None:
    """Score a version beside the stable one on a share of the requests. --off ends it."""
    if off and version is None and share is None:
        _change(repository, name, lambda versions: versions.file.stop_shadow(why))
    elif off or version is None or share is None:
        raise OptionError("shadow: a version and --share expected, or --off")
    else:
        _change(repository, name, lambda versions: versions.shadow(version, share, why))


def admin(
    repository: Root = None,
    name: Name = None,
    host: Annotated[
        str | None, typer.Option(help="Address to bind.", show_default=default("admin_host"))
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port; 0 picks one.", show_default=default("admin_port"))
    ] = None,
) -> None:
    """Serve the same over HTTP, on a port of its own. The key is DINSERVE_ADMIN_KEY."""
    import uvicorn

    from model.contract.repository import RepositoryError
    from service.admin import create_admin
    from service.logs import log_as_json
    from service.worker import server_options

    settings = settings_of(repository=repository, name=name, admin_host=host, admin_port=port)
    try:
        app = create_admin(settings)
    except (RepositoryError, ValueError) as error:
        raise CommandError(str(error)) from None
    log_as_json()
    uvicorn.run(app, host=settings.admin_host, port=settings.admin_port, **server_options(settings))


@contextmanager
def _versions(repository: Root, name: Name) -> Iterator[Versions]:
    """The versions of a repository; what can't be done with them is a `CommandError`."""
    from model.contract.labels import LabelError
    from model.contract.repository import RepositoryError
    from service.versions import RefusedError, Versions

    settings = settings_of(repository=repository, name=name)
    try:
        yield Versions.of(settings, by="command line")
    except (RepositoryError, LabelError, RefusedError) as error:
        raise CommandError(str(error)) from None
    except OSError as error:
        raise CommandError(f"{settings.repository}: {error.strerror}") from None


def _change(repository: Root, name: Name, step: Callable[[Versions], Labels]) -> None:
    """Do it, and say what the labels are then."""
    from service.listing import said

    with _versions(repository, name) as versions:
        sys.stdout.write(f"{versions.repository.name}: {said(step(versions))}\n")

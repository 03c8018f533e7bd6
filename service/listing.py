"""The listing: a table of a repository's versions and whether each could be served here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from model.contract.bundle import BundleError
from model.contract.repository import Repository, RepositoryError
from service.engine import EngineError, OnnxEngine
from service.settings import Settings
from service.verify import verify


class ListingError(RuntimeError):
    """A repository that can't be listed, and why."""


def print_versions(settings: Settings) -> None:
    """Check each version as the service does (on the CPU) and print it, the newest first.

    Raises `ListingError`.
    """
    try:
        repository = Repository.find(settings.repository, settings.name)
    except RepositoryError as error:
        raise ListingError(str(error)) from None
    numbers = repository.versions()
    if not numbers:
        raise ListingError(f"{repository.folder}: no version is published")
    table = Table(title=f"{repository.name} in {repository.root}")
    for column in ("version", "state", "metrics", "lineage"):
        table.add_column(column)
    for number in reversed(numbers):
        try:
            version = verify(repository, number, lambda graph: OnnxEngine.open(graph, "cpu"))
        except (BundleError, EngineError) as error:
            table.add_row(str(number), escape(f"refused: {error}"), "", "")
        else:
            manifest = version.bundle.manifest
            lineage = escape(_said(manifest["lineage"]))
            table.add_row(str(number), "valid", escape(_said(manifest["metrics"])), lineage)
    Console().print(table)


def _said(values: Mapping[str, Any]) -> str:
    return "\n".join(
        f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
    )

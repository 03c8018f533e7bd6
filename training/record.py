"""What a repository knows of retrainings: the current version, and which jobs were done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.contract.bundle import MANIFEST
from model.contract.labels import Labels
from model.contract.repository import Repository
from training import state

WORK = ".retrain"
REFUSED = "refused"
STATES_KEPT = 5  # those of the newest versions; a rollback rarely goes further back


@dataclass(frozen=True)
class Version:
    """A version and what its manifest says of where it comes from."""

    number: int
    metrics: Mapping[str, Any]
    lineage: Mapping[str, Any]

    @property
    def job(self) -> str | None:
        """The retraining that it is of."""
        found: str | None = self.lineage.get("retrain", {}).get("job")
        return found

    @property
    def learnt_until(self) -> int:
        """All impressions that it learnt from are from before this, in ms since 1970; 0 where
        nothing is known of that."""
        found: int = self.lineage.get("learnt_until", 0)
        return found

    @property
    def state(self) -> str | None:
        found: str | None = self.lineage.get("state")
        return found


def versions(repository: Repository) -> list[Version]:
    """All versions, oldest first; nothing is said of one whose manifest can't be read."""
    return [version(repository, number) for number in repository.versions()]


def current(repository: Repository, labels: Labels) -> Version | None:
    """The stable version, else the newest; None where nothing is published."""
    numbers = repository.versions()
    if not numbers:
        return None
    return version(repository, labels.stable if labels.stable in numbers else numbers[-1])


def version(repository: Repository, number: int) -> Version:
    """That version; nothing is said of it where its manifest can't be read."""
    try:
        found = json.loads((repository.folder / str(number) / MANIFEST).read_bytes())
        return Version(number, found["metrics"], found["lineage"])
    except (OSError, ValueError, KeyError, TypeError):
        return Version(number, {}, {})


def work_folder(repository: Repository, days: object, job: str) -> Path:
    return repository.folder / WORK / f"{days}-{job}"


def refusal_folder(repository: Repository, days: object, job: str) -> Path:
    return repository.folder / REFUSED / f"{days}-{job}"


def tidy(repository: Repository, labels: Labels, work: Path | None = None) -> None:
    """Remove what no retraining needs any more: all work but ``work``, and old states."""
    for folder in (repository.folder / WORK).iterdir():
        if folder.is_dir() and folder != work:
            shutil.rmtree(folder)
    with repository.alone():
        found = versions(repository)
        labelled = {labels.stable, labels.canary, *labels.previous[:1]}
        kept = [*found[-STATES_KEPT:], *(each for each in found if each.number in labelled)]
        state.drop(repository.folder, {each.state for each in kept if each.state})

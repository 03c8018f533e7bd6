"""Verification: a version is proved on this machine's engine, and warm, before anyone gets it.

In this order, the cheap ones first: size, digests, schema and contents (`Bundle.open`), the
encoding of the golden requests, their scores, the shapes that a service meets, every row of the
tables, and real requests that were recorded here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from model.contract.bundle import MANIFEST, Bundle, BundleError
from model.contract.encode import Encoder
from model.contract.repository import Repository
from model.contract.schema import Schema
from service.engine import Engine, EngineError, warm_up
from service.merging import merge_limit
from service.recorded import Sample, replay
from service.sweep import sweep

OpenEngine = Callable[[Path], Engine]
Stamp = tuple[int, int, int]
TOLERANCE = {"cpu": 1e-4, "cuda": 1e-3}


@dataclass(frozen=True, eq=False)
class Version:
    """A verified, warm model."""

    name: str
    number: int
    bundle: Bundle
    engine: Engine
    stamp: Stamp
    merge_limit: int
    """Padded pairs up to which requests gain from sharing a call of it on this machine."""

    @property
    def created(self) -> float:
        """When it was made, in seconds since 1970, as its lineage says, else its files."""
        made = self.bundle.manifest["lineage"].get("created")
        return float(made) if isinstance(made, int | float) else self.stamp[0] / 1e9

    @property
    def schema(self) -> Schema:
        return self.bundle.schema

    @property
    def encoder(self) -> Encoder:
        return self.bundle.encoder


def verify(
    repository: Repository,
    number: int,
    open_engine: OpenEngine,
    *,
    max_bytes: int | None = None,
    recorded: Iterable[Sample] = (),
) -> Version:
    """Open a version and check it on its engine.

    Raises `BundleError` or `EngineError`; both say why as a ``reason``.
    """
    try:
        stamp = stamp_of(repository, number)
        bundle = repository.open(number, max_bytes)
        bundle.check_encoding()
        engine = open_engine(bundle.graph)
        bundle.check_scores(lambda batch: engine.run(batch).logit, TOLERANCE[engine.provider])
        warm_up(engine, bundle.schema)
        sweep(engine, bundle.encoder)
        limit = merge_limit(engine, bundle.schema)
        replay(recorded, bundle.encoder, engine)
    except (BundleError, EngineError):
        raise
    except Exception as error:  # whatever a bundle holds, it must not end the service
        raise BundleError(f"{type(error).__name__}: {error}", "other") from error
    return Version(repository.name, number, bundle, engine, stamp, limit)


def stamp_of(repository: Repository, number: int) -> Stamp:
    """Which bundle lies at a version's place; another one has another stamp. Raises OSError."""
    found = (repository.folder / str(number) / MANIFEST).stat()
    return found.st_mtime_ns, found.st_size, found.st_ino

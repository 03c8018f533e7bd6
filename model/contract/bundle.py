"""The bundle: one model version on disk, all that a service needs to answer.

::

    manifest.json     written last: format, schema fingerprint, metrics, lineage and the sha256
                      and size of every other file, under a digest of its own
    schema.toml       the schema, word for word
    model.onnx        the scoring graph: the feeds of `Batch` -> logit [C, tasks], weight [C, L]
    tables/NAME.npy   a vocabulary per learnt id table
    catalogue/*.npy   the items
    golden.json       raw requests ...
    golden.npz        ... the arrays they must encode to and the logits [C, tasks] they must give

Nothing is pickled. `Bundle.open` refuses, with `BundleError`, whatever does not match its digests.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from model.contract.batch import Batch, merge
from model.contract.catalogue import Catalogue
from model.contract.encode import Encoder, Given, Request, table_of
from model.contract.ids import Vocabulary
from model.contract.schema import Schema

FORMAT = 1
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 64 * 2**20
REQUIRED = (
    "schema.toml",
    "model.onnx",
    *(f"catalogue/{name}.npy" for name in ("keys", "rows", "ends", "names")),
    "golden.json",
    "golden.npz",
)

Logits = npt.NDArray[np.float32]
Run = Callable[[Batch], Logits]


Reason = Literal[
    "manifest",  # the manifest can't be read, or its own digest differs
    "digest",  # a file is missing, or not the one that the manifest describes
    "schema",  # the schema does not fit the manifest, the catalogue or the graph
    "contents",  # files whose digests agree do not make a model
    "golden_encoding",
    "golden_scores",
    "not_finite",  # a score is NaN or infinite
    "too_large",
    "engine",  # the graph can't be opened or run
    "other",
]


class BundleError(ValueError):
    """A bundle that must not be served, and why: in words, and as one of the `Reason`s."""

    def __init__(self, message: str, reason: Reason = "contents") -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Golden:
    """Raw requests with the arrays and logits [C, tasks] they must give, all in one batch.

    A request is {"candidates": [id], "given": [{...}], "history": [{item_id, ts, ...}],
    "user": {...}, "context": {...}}; all but the candidates may be left out.
    """

    requests: Sequence[Given]
    batch: Batch
    logits: Logits


@dataclass(frozen=True)
class Bundle:
    """An opened bundle; its files agree with its manifest."""

    folder: Path
    schema: Schema
    encoder: Encoder
    golden: Golden
    manifest: Mapping[str, Any]

    @property
    def graph(self) -> Path:
        return self.folder / "model.onnx"

    @property
    def metrics(self) -> Mapping[str, Any]:
        return dict(self.manifest["metrics"])

    @classmethod
    def open(cls, folder: Path, max_bytes: int | None = None) -> Bundle:
        """Check every digest, then load what the manifest lists. Raises `BundleError`.

        Of a bundle of more than ``max_bytes`` nothing but the manifest is read.
        """
        try:
            manifest = _read_manifest(folder)
            files = manifest["files"]
            size = sum(entry["bytes"] for entry in files.values())
            if max_bytes is not None and size > max_bytes:
                raise BundleError(f"{size} bytes, more than {max_bytes}", "too_large")
            for name, entry in files.items():
                _check_file(folder, name, entry)
            for name in REQUIRED:
                if name not in files:
                    raise BundleError(f"{MANIFEST}: {name} is not listed", "manifest")
            schema = _read_schema(folder)
            if schema.fingerprint != manifest["schema"]:
                raise BundleError("schema.toml: fingerprint differs from the manifest's", "schema")
            catalogue = Catalogue.load(folder / "catalogue")
            if catalogue.rows.shape[1] != schema.width("item"):
                raise BundleError("catalogue: a column for each item field expected", "schema")
            tables = {
                name: table_of(field, _vocabulary(folder, name, files))
                for name, field in schema.tables.items()
            }
            encoder = Encoder(schema, tables, catalogue)
            return cls(folder, schema, encoder, _read_golden(folder, encoder), manifest)
        except BundleError:
            raise
        except Exception as error:  # npz, zip and JSON readers raise more than they document
            raise BundleError(f"{folder.name}: {error!r}") from error

    def check_encoding(self) -> None:
        """Encode the golden requests anew. Raises `BundleError` where an array differs."""
        try:
            found = encode_golden(self.encoder, self.golden.requests)
        except Exception as error:  # requests of another form than this code's
            raise BundleError(f"golden.json: {error!r}", "golden_encoding") from error
        for each in fields(Batch):
            if not np.array_equal(getattr(found, each.name), getattr(self.golden.batch, each.name)):
                raise BundleError(
                    f"golden: {each.name} is encoded differently here", "golden_encoding"
                )

    def check_scores(self, run: Run, tolerance: float) -> float:
        """Score the golden batch; the largest |dlogit|. Raises `BundleError` above ``tolerance``.

        What ``run`` raises passes through.
        """
        expected, found = self.golden.logits, run(self.golden.batch)
        if found.shape != expected.shape:
            raise BundleError("golden: scores are of another shape", "golden_scores")
        if not np.isfinite(found).all():
            raise BundleError("golden: scores are not finite", "not_finite")
        if not found.size or not np.isfinite(expected).all():
            raise BundleError(
                "golden: no logits, or not finite ones, to compare with", "golden_scores"
            )
        worst = float(np.abs(found - expected).max())
        if worst > tolerance:
            raise BundleError(
                f"golden: a logit is off by {worst:.2e}, more than {tolerance:.0e}", "golden_scores"
            )
        return worst


def encode_golden(encoder: Encoder, requests: Sequence[Given]) -> Batch:
    """All requests of a golden set as one batch. Raises `FieldError`."""
    batches = []
    for raw in requests:
        request = Request(
            candidates=raw["candidates"],
            history=encoder.records(raw.get("history", [])),
            user=raw.get("user", {}),
            context=raw.get("context", {}),
            given=raw.get("given", ()),
        )
        batches.append(encoder.encode(request)[0])
    return merge(batches)


def write(
    folder: Path,
    *,
    schema_text: str,
    encoder: Encoder,
    graph: bytes,
    golden: Golden,
    metrics: Mapping[str, Any],
    lineage: Mapping[str, Any],
    more: Mapping[str, bytes] | None = None,
) -> None:
    """Write a bundle into an empty folder: every file on disk first, the manifest last.

    ``more`` are files that nobody needs to answer, as a report, by their names.
    """
    schema = encoder.schema
    (folder / "schema.toml").write_text(schema_text, encoding="utf-8")
    (folder / "model.onnx").write_bytes(graph)
    (folder / "tables").mkdir()
    for name, table in encoder.tables.items():
        if isinstance(table, Vocabulary):
            table.save(_table_file(folder, name))
    encoder.catalogue.save(folder / "catalogue")
    requests = json.dumps(list(golden.requests), ensure_ascii=False, indent=1)
    (folder / "golden.json").write_text(requests, encoding="utf-8")
    np.savez(folder / "golden.npz", logits=golden.logits, **vars(golden.batch))
    for name, content in (more or {}).items():
        (folder / name).write_bytes(content)
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    for name in names:
        sync(folder / name)
    for inner in ("tables", "catalogue"):
        sync(folder / inner)
    body: dict[str, Any] = {
        "format": FORMAT,
        "name": schema.name,
        "schema": schema.fingerprint,
        "metrics": dict(metrics),
        "lineage": dict(lineage),
        "files": {name: _describe(folder / name) for name in names},
    }
    path = folder / MANIFEST
    path.write_bytes(sealed(body))
    sync(path)
    sync(folder)


def sealed(body: Mapping[str, Any]) -> bytes:
    """The bytes of a manifest that says this and its digest: the only ones that are read."""
    body = json.loads(json.dumps(body))  # as it will be read: text keys, lists
    manifest = {**body, "sha256": _digest(body)}
    return (json.dumps(manifest, ensure_ascii=False, indent=1) + "\n").encode()


def sync(path: Path) -> None:
    """Force a file's bytes, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "bytes": path.stat().st_size}


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        if (folder / MANIFEST).stat().st_size > MAX_MANIFEST_BYTES:
            raise BundleError(f"{MANIFEST}: more than {MAX_MANIFEST_BYTES} bytes", "too_large")
        content = (folder / MANIFEST).read_bytes()
        body = json.loads(content)
        del body["sha256"]
        intact = content == sealed(body)
    except BundleError:
        raise
    except Exception as error:  # whatever JSON may hold in place of a manifest
        raise BundleError(f"{MANIFEST}: unreadable ({error})", "manifest") from error
    if not intact:
        raise BundleError(f"{MANIFEST}: its digest or its form differs", "manifest")
    if body["format"] != FORMAT:
        raise BundleError(
            f"{MANIFEST}: format {body['format']}, this code reads {FORMAT}", "manifest"
        )
    found: dict[str, Any] = body
    return found


def _read_schema(folder: Path) -> Schema:
    try:
        return Schema.load(folder / "schema.toml")
    except ValueError as error:  # SchemaError, and text that is no UTF-8
        raise BundleError(str(error), "schema") from error


def _check_file(folder: Path, name: str, entry: Mapping[str, Any]) -> None:
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise BundleError(f"{MANIFEST}: a file outside the bundle", "manifest")
    try:
        # The size is looked at first: what is far too large is not read to find its digest.
        sound = (folder / name).stat().st_size == entry["bytes"]
        sound = sound and _describe(folder / name) == entry
    except OSError as error:
        raise BundleError(f"{name}: {error.strerror}", "digest") from error
    if not sound:
        raise BundleError(f"{name}: digest or size differs from the manifest's", "digest")


def _table_file(folder: Path, name: str) -> Path:
    return folder / "tables" / f"{name}.npy"


def _vocabulary(folder: Path, name: str, listed: Container[str]) -> Vocabulary | None:
    path = _table_file(folder, name)
    return Vocabulary.load(path) if path.relative_to(folder).as_posix() in listed else None


def _read_golden(folder: Path, encoder: Encoder) -> Golden:
    requests = json.loads((folder / "golden.json").read_bytes())
    # Opened here, since np.load would leave a file open that turns out to be no zip.
    with (folder / "golden.npz").open("rb") as file, np.load(file, allow_pickle=False) as stored:
        arrays = {each.name: stored[each.name] for each in fields(Batch) if each.name in stored}
        if "ts" not in arrays:  # made when a batch held no times
            arrays["ts"] = encode_golden(encoder, requests).ts
        return Golden(requests, Batch(**arrays), stored["logits"])

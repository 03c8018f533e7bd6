"""A repository on an object store: versions and labels, taken there and brought here.

It lies there as on disk, ``<url>/<name>/<integer>/...`` and ``<url>/<name>/labels.json``. Who
writes uploads a version's files, then its manifest, and the labels after all versions: so who reads
finds whole versions, and labels of versions that are there. A version never changes. Any store that
fsspec knows will do.
"""

from __future__ import annotations

import fcntl
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from model.contract.bundle import MANIFEST, MAX_MANIFEST_BYTES, Bundle, BundleError, sync
from model.contract.labels import LABELS, LabelFile, Labels, read
from model.contract.repository import Repository
from model.contract.schema import is_name

_CHUNK = 2**24
# Stores of objects in buckets: there are no folders to make, and s3fs would make the bucket too.
_OF_BUCKETS = frozenset({"s3", "gs", "abfs"})
_NEWEST = 2  # brought here beside the labelled ones; the one before, where the newest is bad
_KEPT = 5
_UNFINISHED = ".unfinished-mirror"
_SEEN = ".labels.mirrored"  # the store's labels that the copy's were last set to
_LOCK = ".mirror.lock"
_log = logging.getLogger(__name__)


class MirrorError(ValueError):
    """An object store, or what lies there, can't be used as asked, and why."""


class Remote:
    """The repository at a URL of fsspec's. What the store itself raises is let through.

    ``given_up`` says whether to stop in the middle. Raises `MirrorError` for a URL whose packages
    are missing.
    """

    def __init__(self, url: str, given_up: Callable[[], bool] = lambda: False) -> None:
        try:
            from fsspec.core import url_to_fs

            # Listings that are remembered would hide what is published next.
            self._store, self._root = url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:  # no word of the URL: it may hold a secret
            raise MirrorError(
                f"{url.partition('://')[0]}:// can't be used ({type(error).__name__}): install the"
                " extra objects, and fsspec's package for that store, as s3fs or gcsfs"
            ) from None
        protocol = self._store.protocol
        self._folders = _OF_BUCKETS.isdisjoint(
            [protocol] if isinstance(protocol, str) else protocol
        )
        self._given_up = given_up
        self._bad: dict[tuple[str, int], bytes] = {}

    def names(self) -> list[str]:
        """The models that are there."""
        return sorted(filter(is_name, self._list("")))

    def versions(self, name: str) -> list[int]:
        """Numbers that are taken there, oldest first, whole or not."""
        found = [each for each in self._list(name) if each.isascii() and each.isdigit()]
        return sorted(int(each) for each in found if str(int(each)) == each)

    def pull(self, root: Path, name: str, max_bytes: int | None = None) -> None:
        """Make a folder a copy: the newest versions, all that have labels, then the labels.

        Does nothing while another process does. A version that is not what its manifest says is
        left out and logged, once. What was changed in the copy's labels holds until the store's
        change. Raises `LabelError`, `MirrorError` and what the store raises.
        """
        repository = Repository(root, name)
        repository.folder.mkdir(parents=True, exist_ok=True)
        with (repository.folder / _LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            text = self._read(f"{name}/{LABELS}")
            labelled = _labelled(self._labels(text, repository))
            there = self.versions(name)
            for number in sorted({*labelled, *there[-_NEWEST:]} & {*there}, reverse=True):
                if number not in repository.versions():
                    self._bring(repository, number, max_bytes)
            self._set_labels(text, repository)
            # Of what was brought the oldest go again; who has them mapped keeps them.
            kept = labelled | _labelled(LabelFile(repository, by="mirror").read())
            for number in repository.versions()[:-_KEPT]:
                if number not in kept:
                    shutil.rmtree(repository.folder / str(number))

    def push(self, repository: Repository) -> list[int]:
        """Take there what is newer than what is there, what has a label, then the labels; the
        versions that were taken. Raises `LabelError`, `MirrorError` and what the store raises."""
        path, name = repository.folder / LABELS, repository.name
        labels = read(path)
        text = path.read_bytes() if path.exists() else None
        there = [n for n in self.versions(name) if self._store.exists(self._manifest(name, n))]
        newest = max(there, default=0)
        taken = []
        for number in repository.versions():
            if number in there:
                self._expect_same(repository, number)
            elif number > newest or number in _labelled(labels):
                self._take(repository, number)
                taken.append(number)
        if text is not None and text != self._read(f"{name}/{LABELS}"):
            self._store.pipe_file(self._at(f"{name}/{LABELS}"), text)
        return taken

    def _take(self, repository: Repository, number: int) -> None:
        folder = repository.folder / str(number)
        manifest = (folder / MANIFEST).read_bytes()
        for file in [*json.loads(manifest)["files"], MANIFEST]:
            path = self._at(f"{repository.name}/{number}/{file}")
            if self._folders:
                self._store.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._store.put_file(str(folder / file), path)

    def _expect_same(self, repository: Repository, number: int) -> None:
        here = (repository.folder / str(number) / MANIFEST).read_bytes()
        if self._store.cat_file(self._manifest(repository.name, number)) != here:
            raise MirrorError(f"{repository.name}: version {number} there is another one")

    def _bring(self, repository: Repository, number: int, max_bytes: int | None) -> None:
        """Download a version, prove it, and only then give it its place."""
        place, base = (repository.name, number), f"{repository.name}/{number}"
        manifest = self._read(f"{base}/{MANIFEST}", MAX_MANIFEST_BYTES)
        if manifest is None or self._bad.get(place) == manifest:
            return
        unfinished = repository.folder / _UNFINISHED
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        try:
            for file in _files(manifest, max_bytes):
                (unfinished / file).parent.mkdir(parents=True, exist_ok=True)
                self._copy(f"{base}/{file}", unfinished / file)
            (unfinished / MANIFEST).write_bytes(manifest)
            sync(unfinished / MANIFEST)
            Bundle.open(unfinished)
            unfinished.rename(repository.folder / str(number))
            sync(repository.folder)
            _log.info("%s version %d brought here", repository.name, number)
        except (BundleError, FileNotFoundError) as error:
            self._bad[place] = manifest
            _log.error("%s version %d not brought: %s", repository.name, number, error)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _copy(self, remote: str, local: Path) -> None:
        with self._store.open(self._at(remote), "rb") as source, local.open("wb") as target:
            while chunk := source.read(_CHUNK):
                if self._given_up():
                    raise MirrorError("given up")
                target.write(chunk)
        sync(local)

    def _labels(self, text: bytes | None, repository: Repository) -> Labels:
        """The store's labels, checked. Raises `LabelError`."""
        if text is None:
            return Labels()
        beside = repository.folder / f"{_UNFINISHED}-{LABELS}"
        beside.write_bytes(text)
        try:
            return read(beside)
        finally:
            beside.unlink()

    def _set_labels(self, text: bytes | None, repository: Repository) -> None:
        """Make the copy's labels the store's, if those changed since the last time."""
        seen, path = repository.folder / _SEEN, repository.folder / LABELS
        if (seen.read_bytes() if seen.exists() else None) == text:
            return
        if text is None:
            path.unlink(missing_ok=True)
            seen.unlink()
            return
        # The same name as a writer's next labels: whoever holds the lock owns it.
        with repository.alone(".labels.lock"):
            for target in (path, seen):
                beside = repository.folder / f".{LABELS}"
                beside.write_bytes(text)
                sync(beside)
                beside.rename(target)
        sync(repository.folder)

    def _list(self, folder: str) -> list[str]:
        try:
            found: list[str] = self._store.ls(self._at(folder), detail=False)
        except FileNotFoundError:
            return []
        return [each.rstrip("/").rpartition("/")[2] for each in found]

    def _read(self, path: str, limit: int | None = None) -> bytes | None:
        """A small file; None where there is none. Raises `MirrorError` beyond the limit."""
        try:
            if limit is not None and self._store.size(self._at(path)) > limit:
                raise MirrorError(f"{path}: more than {limit} bytes")
            found: bytes = self._store.cat_file(self._at(path))
        except FileNotFoundError:
            return None
        return found

    def _manifest(self, name: str, number: int) -> str:
        return self._at(f"{name}/{number}/{MANIFEST}")

    def _at(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{path}".rstrip("/")


def _labelled(labels: Labels) -> set[int]:
    """Versions that have a label, and the one that a rollback would take."""
    several = (labels.stable, labels.canary, labels.shadow, *labels.previous[:1])
    return {number for number in several if number is not None}


def _files(manifest: bytes, max_bytes: int | None) -> list[str]:
    """The files that a manifest lists, none of them outside the bundle. Raises `BundleError`."""
    try:
        listed: dict[str, Any] = json.loads(manifest)["files"]
        size = sum(int(entry["bytes"]) for entry in listed.values())
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BundleError(f"{MANIFEST}: unreadable ({type(error).__name__})", "manifest") from error
    if max_bytes is not None and size > max_bytes:
        raise BundleError(f"{size} bytes, more than {max_bytes}", "too_large")
    for file in listed:
        path = PurePosixPath(file)
        if path.is_absolute() or ".." in path.parts or file == MANIFEST:
            raise BundleError(f"{MANIFEST}: a file outside the bundle", "manifest")
    return list(listed)

"""MovieLens-1M for the demo: the owner's archive, fetched once, and its film titles for display."""

from __future__ import annotations

import os
import threading
import zipfile
from pathlib import Path

import httpx
from rich.console import Console

from terminal.progress import progress

URL = "https://files.grouplens.org/datasets/movielens/ml-1m.zip"
ANSWER_SECONDS = 5.0
STALL_SECONDS = 15.0


class DownloadError(RuntimeError):
    """Why there is no archive."""


class ArchiveError(ValueError):
    """A file that is not the archive of MovieLens-1M."""


class _Download(threading.Thread):
    """Writes what ``url`` answers to ``path``.

    A thread, since looking up a host's name can't be given a time limit; one that hangs is left.
    """

    def __init__(self, url: str, path: Path) -> None:
        super().__init__(daemon=True)
        self.url, self.path = url, path
        self.answered = threading.Event()
        self.total, self.done = 0, 0
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            timeout = httpx.Timeout(ANSWER_SECONDS, read=STALL_SECONDS)
            with httpx.stream("GET", self.url, timeout=timeout, follow_redirects=True) as answer:
                answer.raise_for_status()
                self.total = int(answer.headers.get("content-length", 0))
                self.answered.set()
                with self.path.open("wb") as file:
                    for chunk in answer.iter_bytes(65536):
                        file.write(chunk)
                        self.done += len(chunk)
        except (httpx.HTTPError, OSError, ValueError) as error:
            self.error = error
        finally:
            self.answered.set()


def download(folder: Path, console: Console) -> Path:
    """The archive in ``folder``, fetched unless it is there. Raises `DownloadError`."""
    path = folder / "ml-1m.zip"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".ml-1m.zip-{os.getpid()}"
    console.print(f"asking {URL}")
    thread = _Download(URL, unfinished)
    thread.start()
    try:
        if not thread.answered.wait(ANSWER_SECONDS):
            raise DownloadError(f"no answer within {ANSWER_SECONDS:.0f} s")
        if thread.error is None:
            _watch(thread, console)
        if thread.error is not None:
            raise DownloadError(str(thread.error).partition("\n")[0] or repr(thread.error))
        _check(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def titles(path: Path) -> dict[str, str]:
    """Film titles by id, for display only. Raises `ArchiveError`."""
    try:
        with zipfile.ZipFile(path) as archive:
            lines = archive.read("ml-1m/movies.dat").decode("latin-1").splitlines()
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ArchiveError(f"not the archive of MovieLens-1M: {error}") from None
    return {parts[0]: parts[1] for line in lines if len(parts := line.split("::")) == 3}


def _watch(thread: _Download, console: Console) -> None:
    """Show the download until it ends. Raises `DownloadError` when nothing comes any more."""
    with progress(console) as update:
        done = -1
        while thread.is_alive():
            thread.join(0.1)
            update("download kB", thread.done // 1000, thread.total // 1000, {})
            if thread.done > done:
                done, waited = thread.done, 0.0
            elif (waited := waited + 0.1) > STALL_SECONDS:
                raise DownloadError(f"nothing came for {STALL_SECONDS:.0f} s")


def _check(path: Path) -> None:
    """Raises `DownloadError` for what is no whole archive of MovieLens-1M."""
    try:
        titles(path)
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except ArchiveError as error:
        raise DownloadError(f"what came is {error}") from None
    if broken is not None:
        raise DownloadError(f"what came is damaged in {broken}")

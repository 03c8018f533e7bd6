"""A source file's text in parts of whole lines: decompressed on the way, never held whole."""

from __future__ import annotations

import gzip
import io
import math
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from terminal.progress import Update
from training.logs import LogsError

SLICE = 1 << 24
STEP = 1 << 12
LONGEST_LINE = 1 << 26
UNREADABLE = (
    *(OSError, EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError),
    *(NotImplementedError, RuntimeError),  # a zip with another compression, or a password
)


class _Text(Protocol):
    def read(self, size: int, /) -> bytes: ...

    def read1(self, size: int, /) -> bytes: ...


@dataclass
class Reading:
    """How far some files are read: ``update`` is told of the bytes on disk, in kB."""

    update: Update
    total: int
    done: float = 0.0

    @classmethod
    def of(cls, files: Sequence[TextFile], update: Update) -> Reading:
        return cls(update, sum(file.size for file in files))

    def add(self, size: float) -> None:
        """Rows were cut from so many more bytes."""
        self.done += size
        done, total = (math.ceil(size / 1000) for size in (self.done, self.total))
        self.update("read kB", min(done, total), total, {})


@dataclass(frozen=True)
class TextFile:
    """A text: a plain file, a .gz, the member of a .tar.gz that has its name, or one of a zip."""

    path: Path
    member: str = ""

    @property
    def name(self) -> str:
        """What errors call it."""
        return f"{self.path}/{self.member}" if self.member else str(self.path)

    @property
    def size(self) -> int:
        """Bytes on disk; 0 where there is no such file, of which `parts` will complain."""
        try:
            if not self.member:
                return self.path.stat().st_size
            with zipfile.ZipFile(self.path) as archive:
                return archive.getinfo(self.member).compress_size
        except (KeyError, *UNREADABLE):
            return 0

    def parts(self, reading: Reading) -> Iterator[bytes]:
        """The text in parts of about `SLICE` bytes, each of whole lines. Raises `LogsError`."""
        size, done = self.size, 0
        try:
            with self._open() as (text, place):
                for part in _whole_lines(text, self.name):
                    yield part
                    now = min(place(), size)
                    reading.add(now - done)
                    done = now
        except KeyError as error:
            expected = "a member of this name, found none"
            raise LogsError(str(self.path), str(error.args[0]), expected) from None
        except UNREADABLE as error:
            kind = "zip" if self.member else "file"
            where = self.member or "file"
            broken = f", noticed in line {line}" if (line := self._broken_line()) else ""
            expected = f"a readable {kind} ({error}{broken})"
            raise LogsError(str(self.path), where, expected) from None
        reading.add(size - done)

    def _broken_line(self) -> int:
        """The line in which reading fails, looked for in small steps; 0 where nothing is read."""
        line = 0
        try:
            with self._open() as (text, _):
                while block := text.read1(STEP):
                    line = max(line, 1) + block.count(b"\n")
        except (KeyError, *UNREADABLE):
            pass
        return line

    @contextmanager
    def _open(self) -> Iterator[tuple[_Text, Callable[[], int]]]:
        """The text, and how many of the bytes on disk were read for it so far."""
        with self.path.open("rb") as raw:
            if self.member:
                with zipfile.ZipFile(raw) as archive:
                    if self.member not in archive.namelist():
                        raise KeyError(self.member)
                    start = archive.getinfo(self.member).header_offset
                    with archive.open(self.member) as text:
                        assert isinstance(text, zipfile.ZipExtFile)
                        yield text, lambda: raw.tell() - start
            elif self.path.name.endswith(".tar.gz"):
                with tarfile.open(fileobj=raw, mode="r|gz") as tar:
                    yield _named(self.path.name.removesuffix(".tar.gz"), tar), raw.tell
            elif self.path.suffix == ".gz":
                with gzip.GzipFile(fileobj=raw) as text:
                    yield text, raw.tell
            else:
                yield raw, raw.tell


def _named(name: str, tar: tarfile.TarFile) -> _Text:
    """The file of this name, in whatever folder of the archive. Raises KeyError."""
    for info in tar:
        if info.isfile() and Path(info.name).name == name:
            text = tar.extractfile(info)
            assert isinstance(text, io.BufferedReader)
            return text
    raise KeyError(name)


def _whole_lines(text: _Text, name: str) -> Iterator[bytes]:
    rest: list[bytes] = []
    while block := text.read(max(SLICE, 1)):
        end = block.rfind(b"\n") + 1
        if end:
            yield b"".join([*rest, block[:end]])
            rest = []
        rest.append(block[end:])
        if sum(map(len, rest)) > LONGEST_LINE:
            raise LogsError(name, "lines", f"lines of at most {LONGEST_LINE:,} bytes")
    if last := b"".join(rest):
        yield last

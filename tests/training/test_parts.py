"""A file's text in parts."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training import parts
from training.logs import LogsError
from training.parts import Reading, TextFile

TEXT = b"".join(b"%d,some text\n" % n for n in range(20_000))


def silent(stage: str, done: int, total: int, figures: object) -> None:
    """Progress that is not shown."""


def read(file: TextFile) -> list[bytes]:
    return list(file.parts(Reading.of([file], silent)))


@pytest.fixture
def forms(tmp_path: Path) -> list[TextFile]:
    """The same text, plain, .gz and in a zip."""
    (tmp_path / "t.csv").write_bytes(TEXT)
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(TEXT))
    with zipfile.ZipFile(tmp_path / "t.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("first.csv", TEXT[::-1])
        archive.writestr("t.csv", TEXT)
    plain, gz, zipped = (tmp_path / name for name in ("t.csv", "t.csv.gz", "t.zip"))
    return [TextFile(plain), TextFile(gz), TextFile(zipped, "t.csv")]


def test_parts_are_whole_lines_and_small(
    forms: list[TextFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each form gives the text, in parts of about the size asked for."""
    monkeypatch.setattr(parts, "SLICE", 10_000)
    for file in forms:
        found = read(file)
        assert b"".join(found) == TEXT
        assert all(part.endswith(b"\n") and len(part) < 11_000 for part in found)


def test_progress_rises_to_the_bytes_on_disk(
    forms: list[TextFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told while the file is read, not at its end."""
    monkeypatch.setattr(parts, "SLICE", 10_000)
    for file in forms:
        told: list[int] = []
        reading = Reading.of(
            [file], lambda stage, done, total, figures, told=told: told.append(done)
        )
        list(file.parts(reading))
        assert told == sorted(told)
        assert told[-1] == -(-file.size // 1000) > 0
        assert len(set(told)) > 2


@given(st.lists(st.binary(max_size=5).filter(lambda line: b"\n" not in line)), st.integers(0, 9))
def test_whatever_the_lines_nothing_is_lost(lines: list[bytes], size: int) -> None:
    """Parts end where lines do, but the last."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "SLICE", size)
        found = list(parts._whole_lines(io.BytesIO(b"\n".join(lines)), "f"))
    assert b"".join(found) == b"\n".join(lines)
    assert all(part.endswith(b"\n") for part in found[:-1])


def test_a_line_without_end_is_not_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small file that unpacks to one endless line is refused."""
    monkeypatch.setattr(parts, "LONGEST_LINE", 100_000)
    monkeypatch.setattr(parts, "SLICE", 10_000)
    path = tmp_path / "bomb.csv.gz"
    path.write_bytes(gzip.compress(b"x" * 1_000_000))
    with pytest.raises(LogsError, match=r"bomb\.csv\.gz: lines: expected lines of at most 100,000"):
        read(TextFile(path))


def test_what_cannot_be_read_is_named(tmp_path: Path, forms: list[TextFile]) -> None:
    """A missing file, a missing member, a zip that is none."""
    with pytest.raises(LogsError, match=r"none\.csv: file: expected a readable file"):
        read(TextFile(tmp_path / "none.csv"))
    with pytest.raises(LogsError, match=r"t\.zip: other\.csv: expected a member of this name"):
        read(TextFile(tmp_path / "t.zip", "other.csv"))
    with pytest.raises(LogsError, match=r"t\.csv: t: expected a readable zip"):
        read(TextFile(tmp_path / "t.csv", "t"))


LINES = b"\n".join(hashlib.sha256(b"%d" % row).hexdigest().encode() for row in range(4_000))


def packed(folder: Path, form: str) -> Path:
    """`LINES` as t.csv in one of the compressed forms."""
    path = folder / form
    match form:
        case "t.csv.gz":
            path.write_bytes(gzip.compress(LINES))
        case "t.csv.tar.gz":
            with tarfile.open(path, "w:gz") as tar:
                info = tarfile.TarInfo("t.csv")
                info.size = len(LINES)
                tar.addfile(info, io.BytesIO(LINES))
        case _:
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("t.csv", LINES)
    return path


@pytest.mark.parametrize("form", ["t.csv.gz", "t.csv.tar.gz"])
def test_a_file_cut_short_is_said_to_break_in_its_line(tmp_path: Path, form: str) -> None:
    """Half of the file is about half of the lines."""
    path = packed(tmp_path, form)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(
        LogsError, match=r"gz: file: expected a readable file \(.*, noticed in line \d"
    ):
        read(TextFile(path))
    assert 1_800 < TextFile(path)._broken_line() < 2_200


def test_a_wrong_byte_is_noticed_at_the_sum_over_all_at_the_latest(tmp_path: Path) -> None:
    path = packed(tmp_path, "t.zip")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        LogsError, match=r"t\.zip: t\.csv: expected a readable zip \(.*, noticed in"
    ):
        read(TextFile(path, "t.csv"))
    assert 1_800 < TextFile(path, "t.csv")._broken_line() <= 4_000

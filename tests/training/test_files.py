"""Files that are whole or not there, whenever their writer is killed."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from training.files import BusyError, Files


def rows(*values: int) -> pl.DataFrame:
    return pl.DataFrame({"n": values}, {"n": pl.Int64})


def held(files: Files, folder: str = "a") -> list[int]:
    return [n for name in files.list(folder) for n in pl.read_parquet(files.root / name)["n"]]


def test_files_are_added_side_by_side(tmp_path: Path) -> None:
    """Each frame is a file of its own in its folder, and the folders are made."""
    files = Files(tmp_path / "new" / "logs")
    with files.alone():
        files.put({"a/x": rows(1, 2), "b": rows(3)})
        files.put({"a/x": rows(4)})
        assert held(files) == [1, 2, 4]
        assert held(files, "b") == [3]
        assert len(files.list("a")) == 2


def test_one_process_writes(tmp_path: Path) -> None:
    """A second writer is refused until the first one is done."""
    files = Files(tmp_path)
    with files.alone(), pytest.raises(BusyError, match="another process"), files.alone():
        pass
    with files.alone():
        pass


def test_rows_are_taken_out_of_a_file(tmp_path: Path) -> None:
    """The file keeps its name; without rows it goes, unless it is to be kept."""
    files = Files(tmp_path)
    with files.alone():
        files.put({"a": rows(1, 2, 3)})
        [name] = files.list("a")
        assert files.rewrite(name, lambda frame: frame.filter(pl.col("n") != 2)) == 1
        assert files.list("a") == [name]
        assert held(files) == [1, 3]
        assert files.rewrite(name, lambda frame: frame) == 0
        assert files.rewrite(name, lambda frame: frame.clear(), keep_empty=True) == 2
        assert files.list("a") == [name]
        files.put({"a": rows(4)})
        assert files.rewrite(files.list("a")[1], lambda frame: frame.clear()) == 1
        assert files.list("a") == [name]


def test_files_become_one(tmp_path: Path) -> None:
    """With all their rows, the oldest first."""
    files = Files(tmp_path)
    with files.alone():
        for n in range(3):
            files.put({"a": rows(n)})
        files.merge(files.small("a", below=10**6))
        assert held(files) == [0, 1, 2]
        assert len(files.list("a")) == 1
        assert files.small("a", below=1) == []


@pytest.mark.parametrize("step", ["before the new file", "after the new file"])
def test_a_merge_that_was_killed_is_ended_or_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Whoever comes next finds every row once."""
    files = Files(tmp_path)
    rename = Path.rename

    def dies(path: Path, target: Path) -> Path:
        if path.suffix == ".parquet":
            if step == "after the new file":
                rename(path, target)
            raise KeyboardInterrupt
        return rename(path, target)

    with files.alone():
        for n in range(3):
            files.put({"a": rows(n)})
        monkeypatch.setattr(Path, "rename", dies)
        with pytest.raises(KeyboardInterrupt):
            files.merge(files.list("a"))
        monkeypatch.undo()
    assert sorted(held(files)) == (
        [0, 1, 2] if step == "before the new file" else [0, 0, 1, 1, 2, 2]
    )
    with files.alone():
        assert held(files) == [0, 1, 2]
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", ".unfinished", "a"]


def test_what_a_killed_writer_left_is_cleared_away(tmp_path: Path) -> None:
    """Files that were not finished are gone once another one writes."""
    files = Files(tmp_path)
    with files.alone():
        (tmp_path / ".unfinished" / "half.parquet").write_bytes(b"half")
    with files.alone():
        assert list((tmp_path / ".unfinished").iterdir()) == []

"""A repository on an object store: whole versions there and here, whatever comes between."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from mirror.remote import MirrorError, Remote
from model.contract.bundle import MANIFEST
from model.contract.labels import LABELS, LabelError, LabelFile, Withdrawal
from model.contract.repository import Repository
from tests.support import publish_toy
from tests.training.test_job import command


@pytest.fixture
def url() -> Iterator[str]:
    """An empty folder of a store in memory."""
    folder = f"memory://bucket-{uuid.uuid4().hex}/models"
    yield folder
    MemoryFileSystem.store.clear()


@pytest.fixture
def source(tmp_path: Path) -> Repository:
    """A repository with version 1."""
    publish_toy(tmp_path / "source")
    return Repository(tmp_path / "source", "toy")


def copy_of(source: Repository, tmp_path: Path) -> Repository:
    return Repository(tmp_path / "copy", source.name)


def same(one: Repository, other: Repository, number: int) -> bool:
    folders = [each.folder / str(number) for each in (one, other)]
    first, second = (
        {p.relative_to(f).as_posix(): p.read_bytes() for p in f.rglob("*") if p.is_file()}
        for f in folders
    )
    return first == second


def test_a_version_comes_back_as_it_went(source: Repository, tmp_path: Path, url: str) -> None:
    """Byte for byte, with the labels; a second look and a second push change nothing."""
    LabelFile(source, by="test").promote(1, "the first")
    assert Remote(url).push(source) == [1]
    assert Remote(url).names() == ["toy"]
    copy = copy_of(source, tmp_path)
    Remote(url).pull(copy.root, "toy")
    assert copy.versions() == [1]
    assert same(source, copy, 1)
    assert LabelFile(copy, by="test").read() == LabelFile(source, by="test").read()
    before = {path: path.stat().st_mtime_ns for path in copy.folder.rglob("*")}
    Remote(url).pull(copy.root, "toy")
    assert Remote(url).push(source) == []
    visible = {p: at for p, at in before.items() if not p.name.startswith(".")}
    assert visible == {path: path.stat().st_mtime_ns for path in visible}


def test_the_manifest_goes_last_and_the_labels_after_it(
    source: Repository, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off after any of its writes, a push leaves no version that is not whole and no label of
    a version that is not there; the next push makes it whole."""
    LabelFile(source, by="test").promote(1)
    wrote: list[str] = []
    put, pipe = MemoryFileSystem.put_file, MemoryFileSystem.pipe_file

    def counted(write: Any) -> Any:
        def writing(self: Any, first: Any, second: Any, *args: Any, **kw: Any) -> Any:
            wrote.append(str(second if write is put else first).rpartition("/")[2])
            if len(wrote) == limit:
                raise OSError("cut off")
            return write(self, first, second, *args, **kw)

        return writing

    monkeypatch.setattr(MemoryFileSystem, "put_file", counted(put))
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", counted(pipe))
    limit = -1
    Remote(f"{url}-whole").push(source)
    assert wrote[-2:] == [MANIFEST, LABELS]
    total = len(wrote)
    for limit in range(1, total + 1):
        wrote.clear()
        remote = Remote(url)
        with pytest.raises(OSError, match="cut off"):
            remote.push(source)
        files = MemoryFileSystem.store
        here = f"/{url.removeprefix('memory://')}/toy"
        assert (f"{here}/1/{MANIFEST}" in files) == (limit > total - 1)
        assert f"{here}/{LABELS}" not in files
    limit = -1
    Remote(url).push(source)
    assert f"{here}/{LABELS}" in MemoryFileSystem.store


def test_a_version_that_was_spoilt_is_not_brought(
    source: Repository, tmp_path: Path, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The one before stays the newest here; it is said once, and tried anew when its manifest is
    another one."""
    Remote(url).push(source)
    assert publish_toy(source.root, bias=1.0) == 2
    remote, copy = Remote(url), copy_of(source, tmp_path)
    remote.push(source)
    [place] = [p for p in MemoryFileSystem.store if p.endswith("/2/model.onnx")]
    whole = MemoryFileSystem.store[place].getvalue()
    MemoryFileSystem().pipe_file(place, whole[:-1] + b"?")
    for _ in range(3):
        remote.pull(copy.root, "toy")
        assert copy.versions() == [1]
        assert not list(copy.folder.glob(".unfinished*"))
    assert len([r for r in caplog.records if "not brought" in r.message]) == 1
    MemoryFileSystem().pipe_file(place, whole)
    Remote(url).pull(copy.root, "toy")  # as after a restart
    assert copy.versions() == [1, 2]


@pytest.mark.parametrize("name", ["../../outside", "/outside"])
def test_a_manifest_writes_nowhere_else(
    source: Repository, tmp_path: Path, url: str, name: str
) -> None:
    """What a store's manifest names is written into the version's folder or not at all."""
    Remote(url).push(source)
    [place] = [p for p in MemoryFileSystem.store if p.endswith(f"/1/{MANIFEST}")]
    manifest = json.loads(MemoryFileSystem.store[place].getvalue())
    manifest["files"][name] = {"sha256": "0", "bytes": 1}
    MemoryFileSystem().pipe_file(place, json.dumps(manifest).encode())
    copy = copy_of(source, tmp_path)
    Remote(url).pull(copy.root, "toy")
    assert copy.versions() == []


def test_a_version_over_the_limit_is_left_there(
    source: Repository, tmp_path: Path, url: str
) -> None:
    """None of its files is read."""
    Remote(url).push(source)
    copy = copy_of(source, tmp_path)
    Remote(url).pull(copy.root, "toy", max_bytes=10)
    assert copy.versions() == []


def test_the_newest_and_the_labelled_are_brought_and_old_ones_go(
    source: Repository, tmp_path: Path, url: str
) -> None:
    """A copy has what a service may need, not all that was ever published."""
    for n in range(1, 8):
        publish_toy(source.root, bias=n / 10)
    labels = LabelFile(source, by="test")
    labels.promote(2)
    labels.promote(3)
    Remote(url).push(source)
    copy = copy_of(source, tmp_path)
    Remote(url).pull(copy.root, "toy")
    assert copy.versions() == [2, 3, 7, 8]
    labels.promote(8)
    Remote(url).push(source)
    for n in range(8, 12):
        publish_toy(source.root, bias=n / 10)
        Remote(url).push(source)
        Remote(url).pull(copy.root, "toy")
    # 3 is what a rollback takes; of the others the five newest stay.
    assert copy.versions() == [3, 8, 9, 10, 11, 12]


def test_labels_of_the_copy_hold_until_the_store_s_change(
    source: Repository, tmp_path: Path, url: str
) -> None:
    """A canary that a service withdrew stays so, and gets its share back when the labels say
    something new. Labels that can't be read change nothing."""
    publish_toy(source.root, bias=1.0)
    labels = LabelFile(source, by="test")
    labels.promote(1)
    labels.start_canary(2, 0.1)
    remote, copy = Remote(url), copy_of(source, tmp_path)
    remote.push(source)
    remote.pull(copy.root, "toy")
    here = LabelFile(copy, by="service")
    assert here.read().canary_share == 0.1
    here.withdraw(Withdrawal(2, here.read().canary_since, "it failed"))
    remote.pull(copy.root, "toy")
    assert here.read().canary_share == 0.0
    labels.start_canary(2, 0.2)
    remote.push(source)
    remote.pull(copy.root, "toy")
    assert here.read().canary_share == 0.2
    [place] = [p for p in MemoryFileSystem.store if p.endswith(f"/{LABELS}")]
    MemoryFileSystem().pipe_file(place, b'{"format": 1')
    with pytest.raises(LabelError):
        remote.pull(copy.root, "toy")
    assert here.read().canary_share == 0.2


def test_another_version_of_the_same_number_is_refused(
    source: Repository, tmp_path: Path, url: str
) -> None:
    """Two that publish apart are told; nothing there is changed."""
    Remote(url).push(source)
    publish_toy(tmp_path / "other", bias=3.0)
    other = Repository(tmp_path / "other", "toy")
    before = dict(MemoryFileSystem.store)
    with pytest.raises(MirrorError, match="version 1 there is another one"):
        Remote(url).push(other)
    assert MemoryFileSystem.store == before


def test_the_command_pushes(
    source: Repository, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`python -m training push`; a store whose package is missing is an error in one line that
    does not say the URL."""
    assert command("push", "--repository", str(source.root), "--to", url) == 0
    assert Remote(url).versions("toy") == [1]
    assert command("push", "--repository", str(source.root), "--to", "nosuch://s3cr3t@x/y") == 1
    said = capsys.readouterr().err
    assert "nosuch:// can't be used" in said
    assert "s3cr3t" not in said

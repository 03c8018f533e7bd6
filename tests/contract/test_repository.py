"""The repository: readers see whole versions only, whatever happens to who writes them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from model.contract.bundle import MANIFEST, BundleError
from model.contract.repository import Repository, RepositoryError
from tests.kill import end, killed_before_step, start

Fill = Callable[[Path], None]


def whole(repository: Repository) -> list[int]:
    """The versions a reader sees, each opened and checked."""
    versions = repository.versions()
    for version in versions:
        repository.open(version).check_encoding()
    return versions


def names(repository: Repository) -> set[str]:
    return {path.name for path in repository.folder.iterdir()}


def test_versions_are_numbered_from_one(tmp_path: Path, fill: Fill) -> None:
    """Each publish takes the next number, and leaves nothing but the version and the lock."""
    repository = Repository(tmp_path / "new" / "root", "shop")
    assert repository.versions() == []
    assert [repository.publish(fill) for _ in range(3)] == [1, 2, 3]
    assert whole(repository) == [1, 2, 3]
    assert names(repository) == {"1", "2", "3", ".lock"}


@pytest.mark.parametrize(
    "name", ["007", "0x7", "7.0", "+7", "-7", "7_0", " 7", "\u0667", "\u00b2", "seven"]
)
def test_only_a_plain_number_is_a_version(tmp_path: Path, fill: Fill, name: str) -> None:
    """A folder that only looks like a number neither counts as a version nor takes a number."""
    repository = Repository(tmp_path, "shop")
    repository.publish(fill)
    (repository.folder / name).mkdir()
    (repository.folder / name / MANIFEST).touch()
    assert repository.versions() == [1]
    assert repository.publish(fill) == 2


def test_versions_sort_as_numbers(tmp_path: Path, fill: Fill) -> None:
    """Version 10 is newer than version 9."""
    repository = Repository(tmp_path, "shop")
    repository.publish(fill)
    (repository.folder / "1").rename(repository.folder / "9")
    assert repository.publish(fill) == 10
    assert whole(repository) == [9, 10]


def test_a_number_without_a_manifest_is_no_version_but_is_taken(tmp_path: Path, fill: Fill) -> None:
    """A stray folder is not served, and no version is written into it."""
    repository = Repository(tmp_path, "shop")
    (repository.folder / "4").mkdir(parents=True)
    assert repository.versions() == []
    assert repository.publish(fill) == 5
    assert repository.versions() == [5]


def test_a_publisher_killed_at_any_step_leaves_whole_versions_only(
    tmp_path: Path, fill: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before each of its steps: readers see whole versions, the next publisher cleans up."""
    step = 0
    while True:
        step += 1
        repository = Repository(tmp_path / str(step), "shop")
        killed = killed_before_step(step, lambda at=repository: at.publish(fill))
        seen = whole(repository)
        assert seen in ([], [1])
        with monkeypatch.context() as patch:  # nothing is proved by waiting for the disk here
            patch.setattr(os, "fsync", lambda _: None)
            assert repository.publish(fill) == len(seen) + 1
        assert whole(repository) == [*seen, len(seen) + 1]
        assert names(repository) == {*map(str, whole(repository)), ".lock"}
        if not killed:
            break
    assert seen == [1]
    assert step > 60  # every file is written and synced


def test_a_publisher_killed_while_it_cleans_up_is_cleaned_up(tmp_path: Path, fill: Fill) -> None:
    """What a killed publisher left is removed however often the removal itself is killed."""
    repository = Repository(tmp_path, "shop")
    repository.publish(fill)
    step = 0
    while True:
        step += 1
        left = repository.folder / ".unfinished-1"
        if not left.exists():
            left.mkdir()
            fill(left)
        assert killed_before_step(step, lambda: repository.publish(fill))
        assert whole(repository) == [1]
        if not left.exists():
            break
    assert step > 5
    assert repository.publish(fill) == 2
    assert names(repository) == {"1", "2", ".lock"}


def test_publishers_at_once_get_versions_of_their_own(tmp_path: Path, fill: Fill) -> None:
    """Three processes of two threads publish together: six versions, all whole."""
    repository = Repository(tmp_path, "shop")

    def slowly(folder: Path) -> None:
        fill(folder)
        time.sleep(0.01)

    def two() -> None:
        threads = [threading.Thread(target=repository.publish, args=(slowly,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    children = [start(two) for _ in range(3)]
    patience = time.monotonic() + 120
    while len(whole(repository)) < 6 and time.monotonic() < patience:
        time.sleep(0.01)
    assert [end(child) for child in children] == [0, 0, 0]
    assert whole(repository) == [1, 2, 3, 4, 5, 6]
    assert names(repository) == {"1", "2", "3", "4", "5", "6", ".lock"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failing_fill_leaves_nothing(
    tmp_path: Path, fill: Fill, error: type[BaseException]
) -> None:
    """What ``fill`` raises passes through, and its files are gone."""
    repository = Repository(tmp_path, "shop")

    def failing(folder: Path) -> None:
        fill(folder)
        raise error

    with pytest.raises(error):
        repository.publish(failing)
    assert names(repository) == {".lock"}
    assert repository.publish(fill) == 1


def half(folder: Path) -> None:
    (folder / "schema.toml").touch()


def nothing(_folder: Path) -> None:
    pass


@pytest.mark.parametrize("partly", [half, nothing])
def test_a_bundle_that_does_not_open_is_not_published(tmp_path: Path, partly: Fill) -> None:
    """A fill that leaves no whole bundle is refused before it gets a number."""
    repository = Repository(tmp_path, "shop")
    with pytest.raises(BundleError):
        repository.publish(partly)
    assert names(repository) == {".lock"}


def test_a_broken_version_is_listed_but_does_not_open(tmp_path: Path, fill: Fill) -> None:
    """A version damaged after its publication is refused by whoever opens it."""
    repository = Repository(tmp_path, "shop")
    repository.publish(fill)
    (repository.folder / "1" / "model.onnx").write_bytes(b"another")
    assert repository.versions() == [1]
    with pytest.raises(BundleError, match=r"model\.onnx"):
        repository.open(1)
    with pytest.raises(BundleError):
        repository.open(2)


def test_find_takes_the_only_model(tmp_path: Path) -> None:
    """A root with one model needs no name; what is no model's name there does not count."""
    (tmp_path / "shop").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "file").touch()
    assert Repository.find(tmp_path) == Repository(tmp_path, "shop")
    assert Repository.find(tmp_path, "other") == Repository(tmp_path, "other")


def test_find_does_not_guess(tmp_path: Path) -> None:
    """No root and no model are errors that say so; of two models it is the one published last."""
    with pytest.raises(RepositoryError, match="No such file"):
        Repository.find(tmp_path / "none")
    with pytest.raises(RepositoryError, match="no model is published"):
        Repository.find(tmp_path)
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
    for seconds, name in ((100, "b"), (200, "a"), (300, "b")):
        manifest = tmp_path / name / "1" / MANIFEST
        manifest.parent.mkdir(exist_ok=True)
        manifest.touch()
        os.utime(manifest, (seconds, seconds))
        assert Repository.find(tmp_path).name == name

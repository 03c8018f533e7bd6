"""Labels: every change is whole, remembered, and says what contradicts it."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model.contract.bundle import MANIFEST
from model.contract.labels import (
    MAX_CHANGES,
    MAX_PREVIOUS,
    LabelError,
    LabelFile,
    Labels,
    MovedError,
    PinnedError,
    Withdrawal,
    read,
)
from model.contract.repository import Repository
from tests.kill import end, killed_before_step, start


def labelled(root: Path, versions: int = 5) -> LabelFile:
    """A repository of so many versions: labels ask for no more than their manifests."""
    repository = Repository(root, "shop")
    for number in range(1, versions + 1):
        folder = repository.folder / str(number)
        folder.mkdir(parents=True)
        (folder / MANIFEST).touch()
    return LabelFile(repository, by="test")


BROKEN = [(b"0.5", b'""', b'""'), (b"5", b"1", b'""'), (b"5", b'""', b"null")]


@pytest.fixture
def file(tmp_path: Path) -> LabelFile:
    return labelled(tmp_path)


def state(labels: Labels) -> Labels:
    return replace(labels, changes=())


def test_without_a_file_nothing_is_labelled(file: LabelFile) -> None:
    """The newest version is followed."""
    assert file.read() == Labels()


def test_a_promotion_is_read_back_and_remembers_the_stable_version_before(file: LabelFile) -> None:
    """The next reader sees it; the latest one before comes first."""
    file.promote(2)
    file.promote(3)
    found = file.promote(4)
    assert file.read() == found
    assert state(found) == Labels(stable=4, previous=(3, 2, 5))


def test_the_newest_version_counts_as_stable_before_the_first_promotion(file: LabelFile) -> None:
    """It was served, so a rollback goes back to it; of the newest itself to the one below."""
    assert file.promote(3).previous == (5,)
    file.follow()
    assert labelled_again(file).promote(5).previous == (4,)


def labelled_again(file: LabelFile) -> LabelFile:
    file.path.unlink()
    return file


def test_a_version_promoted_twice_changes_nothing(file: LabelFile) -> None:
    """No change, no line in the log."""
    assert file.promote(3) == file.promote(3)


def test_promoting_the_canary_or_the_shadow_ends_it(file: LabelFile) -> None:
    """A version is stable or beside the stable one; others keep their label."""
    file.promote(3)
    file.start_canary(4, 0.1)
    file.start_shadow(5, 1)
    found = file.promote(4)
    assert state(found) == Labels(stable=4, shadow=5, shadow_share=1, previous=(3, 5))
    assert state(file.promote(5)) == Labels(stable=5, previous=(4, 3))


def test_rollbacks_go_further_back_each_time(file: LabelFile) -> None:
    """What was rolled back is not where the next rollback goes."""
    for version in (2, 3, 4):
        file.promote(version)
    assert file.rollback().stable == 3
    assert state(file.rollback()) == Labels(stable=2, previous=(5,))
    file.rollback()
    with pytest.raises(LabelError, match="no version was stable before"):
        file.rollback()
    assert file.read().stable == 5


def test_a_reason_that_is_no_text_holds_no_change_up(file: LabelFile) -> None:
    """As a command line gives bytes that are not UTF-8."""
    file.promote(2, why="worse \udcff by far")
    assert file.read().changes[-1].why == "worse ? by far"


def test_a_rollback_passes_over_versions_that_are_gone(file: LabelFile) -> None:
    """A version that was deleted can't be stable again."""
    for version in (2, 3, 4):
        file.promote(version)
    (file.repository.folder / "3" / MANIFEST).unlink()
    assert state(file.rollback()) == Labels(stable=2, previous=(5,))


def test_a_rollback_without_labels_is_to_the_version_below_the_newest(file: LabelFile) -> None:
    """And it stays there when a newer one is published; the next one goes further back."""
    assert state(file.rollback()) == Labels(stable=4, previous=(3, 2, 1))
    assert file.rollback().stable == 3


def test_a_rollback_without_labels_goes_back_from_what_is_served(file: LabelFile) -> None:
    """The newest versions may be refused, and were never served."""
    assert file.before(file.read(), served=3) == 2
    assert state(file.rollback(served=3)) == Labels(stable=2, previous=(1,))


def test_a_rollback_of_the_only_version_is_refused(tmp_path: Path) -> None:
    """There is nothing to go back to."""
    with pytest.raises(LabelError, match="no version was stable before"):
        labelled(tmp_path, versions=1).rollback()


def test_a_rollback_to_another_version_than_expected_is_refused(file: LabelFile) -> None:
    """Who looked at a version before the labels changed does not make another one stable."""
    file.promote(2)
    file.promote(3)
    with pytest.raises(LabelError, match="the labels have changed"):
        file.rollback(to=5)
    assert file.rollback(to=2).stable == 2


def test_a_change_over_another_version_than_expected_is_refused(file: LabelFile) -> None:
    """Who retrained looks at the labels long before it changes them; None is no stable version."""
    file.promote(1, over=(None,))
    file.promote(2)
    before = file.read()
    with pytest.raises(MovedError, match="version 2 has become the stable one since"):
        file.promote(3, over=(None, 1))
    with pytest.raises(MovedError):
        file.start_canary(3, 0.1, over=(1,))
    assert file.read() == before
    assert file.start_canary(3, 0.1, over=(2,)).canary == 3
    assert file.promote(3, over=(1, 2)).stable == 3
    file.follow()
    with pytest.raises(MovedError, match="version none has become"):
        file.promote(3, over=(3,))


def test_a_pinned_version_stays(file: LabelFile) -> None:
    """All traffic goes to it, nothing but another pin moves it, and unpinning leaves it stable."""
    file.start_canary(4, 0.5)
    assert state(file.pin(3)) == Labels(stable=3, pinned=True, previous=(5,))
    refused: list[Callable[[], Labels]] = [
        lambda: file.promote(4),
        file.rollback,
        file.follow,
        lambda: file.start_canary(4, 0.5),
    ]
    for change in refused:
        with pytest.raises(PinnedError, match="version 3 is pinned"):
            change()
    assert file.start_shadow(4, 1).shadow == 4
    assert file.pin(2).stable == 2
    assert file.unpin().stable == 2
    assert file.promote(4).stable == 4


def test_following_ends_what_needs_a_stable_version(file: LabelFile) -> None:
    """The newest version is followed again, without canary and shadow."""
    file.promote(2)
    file.start_canary(3, 0.5)
    file.start_shadow(4, 0.5)
    assert state(file.follow()) == Labels(previous=(2, 5))


def test_a_canary_of_unlabelled_versions_makes_the_newest_other_one_stable(file: LabelFile) -> None:
    """Else the canary itself would be the stable version."""
    assert state(file.start_canary(5, 0.1)) == Labels(stable=4, canary=5, canary_share=0.1)


@pytest.mark.parametrize(
    "told",
    [b"", b"{", b"[]", b'{"version": 5}', b"[" * 100_000]
    + [b'{"version": %s, "since": %s, "why": %s}' % each for each in BROKEN],
)
def test_a_withdrawal_that_is_none_is_refused(told: bytes) -> None:
    """Whatever stands in the store."""
    with pytest.raises(LabelError):
        Withdrawal.parse(told)


def test_a_withdrawal_is_read_as_it_was_told() -> None:
    """Every part of it."""
    found = Withdrawal(7, "2026-11-22T10:00:00.000001+00:00", "30 of 210 requests failed, \u2603")
    assert Withdrawal.parse(found.described.encode()) == found


def test_a_canary_is_withdrawn_only_while_it_is_one(file: LabelFile) -> None:
    """Its share goes to 0 and it stays the canary; a later canary is not touched."""
    file.start_canary(5, 0.1)
    since = file.read().canary_since
    assert file.withdraw(Withdrawal(4, since, "late")).canary_share == 0.1
    file.stop_canary()
    assert file.start_canary(5, 0.1).canary_share == 0.1
    assert file.withdraw(Withdrawal(5, since, "late")).canary_share == 0.1
    file.start_shadow(3, 0.5)
    off = Withdrawal(5, file.read().canary_since, "calibration 1.4 over 20000 impressions")
    found = file.withdraw(off)
    assert (found.canary, found.canary_share) == (5, 0)
    assert found.changes[-1].what == "canary_share 0.1 to 0.0"
    assert found.changes[-1].why == "calibration 1.4 over 20000 impressions"
    assert file.withdraw(off) == found
    assert state(file.stop_canary()) == Labels(stable=4, shadow=3, shadow_share=0.5)


def test_settling_holds_the_newest_version_once(file: LabelFile, tmp_path: Path) -> None:
    """What is published later is not served by itself; of nothing there is nothing to hold."""
    assert state(file.settle()) == Labels(stable=5)
    assert file.settle(3).stable == 5
    file.follow()
    assert file.settle(3).stable == 3
    file.promote(2)
    assert file.settle().stable == 2
    assert labelled(tmp_path / "empty", versions=0).settle() == Labels()


def test_the_log_says_what_who_why_and_is_bounded(file: LabelFile) -> None:
    """The oldest changes go first; so do the oldest stable versions."""
    for at in range(MAX_CHANGES + 5):
        file.promote(1 + at % 2, why=f"turn {at}")
    labels = file.read()
    assert len(labels.changes) == MAX_CHANGES
    latest = labels.changes[-1]
    assert (latest.what, latest.by, latest.why) == ("stable 2 to 1", "test", "turn 104")
    assert latest.at.endswith("+00:00")
    many = Labels(stable=99, previous=tuple(range(MAX_PREVIOUS)))
    assert many.with_stable(98).previous == (99, *range(MAX_PREVIOUS - 1))


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_share_is_from_0_to_1(file: LabelFile, share: float) -> None:
    """Nothing is written for another one."""
    with pytest.raises(LabelError, match="canary_share: expected 0 to 1"):
        file.start_canary(3, share)
    assert not file.path.exists()


def test_only_published_versions_get_labels(file: LabelFile, tmp_path: Path) -> None:
    """A version that is not there is refused by its number, a model without versions by name."""
    starts: list[Callable[[int], Labels]] = [
        file.promote,
        file.pin,
        lambda version: file.start_canary(version, 0.1),
        lambda version: file.start_shadow(version, 0.1),
    ]
    for start_with in starts:
        with pytest.raises(LabelError, match="version 6 is not published"):
            start_with(6)
    with pytest.raises(LabelError, match="shop: no version is published"):
        labelled(tmp_path / "empty", versions=0).unpin()


def test_the_stable_version_is_no_canary_and_no_shadow(file: LabelFile) -> None:
    """Its traffic would be its own."""
    file.promote(3)
    with pytest.raises(LabelError, match="canary: version 3 is the stable one"):
        file.start_canary(3, 0.1)
    with pytest.raises(LabelError, match="shadow: version 3 is the stable one"):
        file.start_shadow(3, 0.1)


GOOD: dict[str, Any] = {
    "format": 1,
    "stable": 4,
    "canary": 5,
    "canary_share": 0.25,
    "shadow": None,
    "shadow_share": 0,
    "pinned": False,
    "previous": [3],
    "changes": [{"at": "2026-11-22T10:00:00+00:00", "what": "w", "by": "b", "why": "y"}],
}


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"format": 2}, "format"),
        ({"stable": "4"}, "stable"),
        ({"stable": True}, "stable"),
        ({"stable": None}, "canary: needs a stable version"),
        ({"stable": 5}, "canary: version 5 is the stable one"),
        ({"canary": None}, "canary_share"),
        ({"canary_share": 2}, "canary_share"),
        ({"canary_share": None}, "canary_share"),
        ({"pinned": 1}, "pinned"),
        ({"pinned": True}, "pinned"),
        ({"previous": 3}, "previous"),
        ({"previous": [None]}, "previous"),
        ({"changes": [{}]}, "changes"),
        ({"changes": {}}, "changes"),
        ({"more": 1}, "fields of format 1"),
    ],
)
def test_a_file_that_is_not_right_is_refused_by_its_field(
    file: LabelFile, changed: dict[str, Any], field: str
) -> None:
    """It is neither taken in part nor written over by a change."""
    file.path.write_text(json.dumps(GOOD))
    assert file.read().previous == (3,)
    text = json.dumps({**GOOD, **changed})
    file.path.write_text(text)
    with pytest.raises(LabelError, match=rf"labels\.json: .*{field}"):
        read(file.path)
    with pytest.raises(LabelError):
        file.promote(3)
    assert file.path.read_text() == text


@pytest.mark.parametrize("data", [b"", b"{", b"null", b"[]", b"\xff", b"[" * 100_000])
def test_a_file_that_is_no_object_is_refused(file: LabelFile, data: bytes) -> None:
    """Whatever bytes it holds."""
    file.path.write_bytes(data)
    with pytest.raises(LabelError, match=r"labels\.json"):
        file.read()


def test_a_writer_killed_at_any_step_leaves_whole_labels(
    file: LabelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader sees those before or those after, and the next change goes through."""
    step = 0
    before = file.promote(2)
    while True:
        step += 1
        killed = killed_before_step(step, lambda: file.promote(3))
        seen = file.read()
        assert seen.stable in {2, 3}
        assert seen.stable == 3 or seen == before
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda _: None)
            assert file.promote(4).stable == 4
            before = file.promote(2)
        names = {path.name for path in file.repository.folder.iterdir()}
        assert names == {"1", "2", "3", "4", "5", ".labels.lock", "labels.json"}
        if not killed:
            break
    assert step > 4


def test_writers_at_once_lose_no_change(file: LabelFile) -> None:
    """Three processes of two threads make eight changes each: the log has them all."""
    file.promote(2)

    def eight(writer: int) -> None:
        for at in range(8):
            share = (8 * writer + at + 1) / 100
            file.start_shadow(3, share, why=f"{share}")

    def two(process: int) -> None:
        writers = (2 * process, 2 * process + 1)
        threads = [threading.Thread(target=eight, args=(writer,)) for writer in writers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        children = [start(lambda at=at: two(at)) for at in range(3)]
        assert [end(child) for child in children] == [0, 0, 0]
    written = [change.why for change in file.read().changes[1:]]
    assert sorted(written) == [f"{n / 100}" for n in range(1, 49)]

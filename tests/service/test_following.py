"""The registry and the labels: what is labelled is served, and what can't be changes nothing."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import shutil
import weakref
from pathlib import Path

import pytest

from model.contract.labels import LABELS, LabelFile, Withdrawal
from model.contract.repository import Repository
from service.engine import Engine, OnnxEngine
from service.errors import Unavailable
from service.lineup import Lineup
from service.registry import Registry, Tell
from service.telemetry import Telemetry
from service.trial import Trial
from tests.service.test_shadow import metrics
from tests.support import publish_toy


class Followed:
    """A repository of the toy model, and a registry that follows it."""

    def __init__(self, root: Path, versions: int) -> None:
        self.root = root
        for number in range(versions):
            publish_toy(root, bias=float(number))
        self.labels = LabelFile(Repository(root, "toy"), by="test")
        self.opened: list[int] = []
        self.telemetry = Telemetry()
        self.registry = self.another()

    def another(self, tell: Tell | None = None) -> Registry:
        """A service that starts."""
        self.telemetry = Telemetry()
        given = {"telemetry": self.telemetry, "trial": Trial(band=0.02, least=10), "tell": tell}
        return Registry(self.root, None, open_engine=self.open, **given)

    def open(self, graph: Path) -> Engine:
        self.opened.append(int(graph.parent.name))
        return OnnxEngine.open(graph, "cpu")

    def look(self) -> tuple[int | None, ...]:
        """Stable, canary and shadow after a look."""
        found = self.registry.look()
        if found is not None:
            self.registry.take(found)
        lineup = self.registry.lineup
        if lineup is None:
            return (None, None, None)
        several = (lineup.stable, lineup.canary, lineup.shadow)
        return tuple(None if version is None else version.number for version in several)

    def lineup(self) -> Lineup:
        assert self.registry.lineup is not None
        return self.registry.lineup

    def damage(self, number: int) -> None:
        graph = self.root / "toy" / str(number) / "model.onnx"
        graph.write_bytes(graph.read_bytes()[:-1])
        os.utime(graph.parent / "manifest.json")

    def labels_are_read_only(self, so: bool) -> None:
        """As good as that, for every user: where the lock lies is a folder."""
        lock = self.root / "toy" / ".labels.lock"
        if so:
            lock.unlink()
            lock.mkdir()
        else:
            lock.rmdir()

    def metric(self, name: str) -> float:
        return metrics(self.telemetry)[name]


@pytest.fixture
def followed(tmp_path: Path) -> Followed:
    return Followed(tmp_path, versions=4)


def test_the_labelled_versions_are_in_service(followed: Followed) -> None:
    """Stable, canary and shadow, each opened once; metrics and shares say so."""
    followed.labels.promote(1)
    followed.labels.start_canary(2, 0.25)
    followed.labels.start_shadow(3, 0.5)
    assert followed.look() == (1, 2, 3)
    assert followed.look() == (1, 2, 3)
    assert followed.opened == [1, 2, 3]
    assert (followed.lineup().canary_share, followed.lineup().shadow_share) == (0.25, 0.5)
    assert followed.metric("dinserve_model_version toy") == 1
    assert followed.metric("dinserve_label_version canary toy") == 2
    assert followed.metric("dinserve_label_share shadow toy") == 0.5
    assert followed.metric("dinserve_labels_broken") == 0
    followed.labels.stop_canary()
    followed.labels.stop_shadow()
    assert followed.look() == (1, None, None)
    assert followed.metric("dinserve_label_version canary toy") == 0
    assert followed.metric("dinserve_label_share shadow toy") == 0


def test_a_promoted_canary_is_not_loaded_again(followed: Followed) -> None:
    """It is warm already: the switch is at once. The version before is released."""
    followed.labels.promote(1)
    followed.labels.start_canary(2, 0.25)
    followed.look()
    canary, stable = followed.lineup().canary, weakref.ref(followed.lineup().stable)
    followed.labels.promote(2)
    assert followed.look() == (2, None, None)
    assert followed.lineup().stable is canary
    assert followed.opened == [1, 2]
    gc.collect()
    assert stable() is None


def test_a_version_is_released_when_its_last_request_ends(followed: Followed) -> None:
    """Who holds it goes on with it; then it is gone, engine and all."""
    followed.labels.promote(1)
    followed.look()
    request = [followed.lineup().pick("u")]
    held = weakref.ref(request[0].engine)
    followed.labels.promote(2)
    followed.look()
    gc.collect()
    assert held() is not None
    request.clear()
    gc.collect()
    assert held() is None


def test_a_rollback_is_followed_and_newer_versions_are_not(followed: Followed) -> None:
    """What was rolled back stays so, whatever is published next, until it is followed again."""
    followed.labels.promote(3)
    assert followed.look()[0] == 3
    followed.labels.rollback()
    assert followed.look()[0] == 4
    followed.labels.promote(2)
    assert followed.look()[0] == 2
    publish_toy(followed.root)
    assert followed.look()[0] == 2
    followed.labels.follow()
    assert followed.look()[0] == 5


@pytest.mark.parametrize("trouble", ["damaged", "missing", "no labels", "half a file"])
def test_labels_that_can_not_be_followed_change_nothing(
    followed: Followed, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The lineup goes on as it is; a metric says so, and a log line does once."""
    followed.labels.promote(1)
    followed.labels.start_canary(2, 0.25)
    followed.look()
    before = followed.lineup()
    match trouble:
        case "damaged":
            followed.damage(3)
            followed.labels.promote(3)
        case "missing":
            followed.labels.promote(3)
            shutil.rmtree(followed.root / "toy" / "3")
        case "no labels":
            followed.labels.path.write_text("{}")
        case "half a file":
            followed.labels.path.write_bytes(followed.labels.path.read_bytes()[:40])
    caplog.clear()
    for _ in range(3):
        assert followed.look() == (1, 2, None)
    assert followed.lineup().same(before)
    assert followed.metric("dinserve_labels_broken") == 1
    said = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == (2 if trouble == "damaged" else 1)
    followed.labels.path.unlink(missing_ok=True)
    followed.labels.promote(2)
    assert followed.look()[0] == 2
    assert followed.metric("dinserve_labels_broken") == 0


def test_a_bad_canary_or_shadow_leaves_the_stable_version_all_traffic(followed: Followed) -> None:
    """Its share is nobody's but the stable version's, and the reason is counted."""
    followed.labels.promote(1)
    for number in (2, 3):
        followed.damage(number)
    followed.labels.start_canary(2, 0.9)
    followed.labels.start_shadow(3, 0.9)
    assert followed.look() == (1, None, None)
    assert followed.lineup().canary_share == 0
    assert followed.metric("dinserve_model_versions_refused_total toy digest") == 2
    assert followed.metric("dinserve_labels_broken") == 1


def test_a_service_that_starts_serves_what_was_stable_before_a_broken_one(
    followed: Followed,
) -> None:
    """In the order in which they were stable, and nothing that never was."""
    for number in (1, 2, 3):
        followed.labels.promote(number)
    followed.damage(3)
    followed.registry = followed.another()
    assert followed.look()[0] == 2
    assert followed.metric("dinserve_labels_broken") == 1
    followed.damage(2)
    followed.registry = followed.another()
    assert followed.look()[0] == 1


def test_a_service_that_starts_serves_nothing_that_was_never_stable(tmp_path: Path) -> None:
    """With no vetted version left it is not ready, and says why; so with labels of nonsense."""
    followed = Followed(tmp_path, versions=1)
    followed.labels.promote(1)
    publish_toy(tmp_path)
    followed.damage(1)
    assert followed.look()[0] is None
    assert "version 1 has a label and is refused: digest: model.onnx" in followed.registry.trouble
    (tmp_path / "toy" / LABELS).write_text("nonsense")
    assert followed.look()[0] is None
    assert LABELS in followed.registry.trouble
    (tmp_path / "toy" / LABELS).unlink()
    assert followed.look()[0] == 2


def fail(followed: Followed, canary: int, of: int) -> None:
    """The canary fails some of its requests; the stable version none of as many."""
    lineup = followed.lineup()
    assert lineup.canary is not None
    for at in range(of):
        followed.registry.report(lineup.stable, failed=False)
        followed.registry.report(lineup.canary, failed=at < canary)


def test_a_canary_that_fails_loses_its_traffic_at_once_and_its_share(
    followed: Followed, caplog: pytest.LogCaptureFixture
) -> None:
    """Here with the request that was too much, in the labels with the next look; an event and a
    metric tell why. Given a share again it is tried again."""
    followed.labels.promote(1)
    followed.labels.start_canary(2, 0.5)
    followed.look()
    fail(followed, canary=9, of=9)
    assert followed.lineup().canary_share == 0.5
    fail(followed, canary=1, of=1)
    assert followed.lineup().canary_share == 0
    assert "canary version 2 withdrawn: 10 of 10 requests failed" in caplog.text
    assert followed.metric("dinserve_canary_withdrawn_total toy") == 1
    assert followed.metric("dinserve_label_share canary toy") == 0
    assert followed.look() == (1, 2, None)
    labels = followed.labels.read()
    assert (labels.canary, labels.canary_share) == (2, 0)
    assert labels.changes[-1].by == "service"
    assert "10 of 10 requests failed" in labels.changes[-1].why
    followed.labels.start_canary(2, 0.5)
    followed.look()
    assert followed.lineup().canary_share == 0.5


def test_where_labels_can_not_be_written_the_decision_stands_here(followed: Followed) -> None:
    """Until the label changes: until then no look gives the canary its traffic back."""
    followed.labels.promote(1)
    followed.labels.start_canary(2, 0.5)
    followed.look()
    followed.labels_are_read_only(True)
    fail(followed, canary=10, of=10)
    for _ in range(3):
        followed.look()
        assert followed.lineup().canary_share == 0
    followed.labels_are_read_only(False)
    assert followed.labels.read().canary_share == 0.5
    followed.labels.start_canary(2, 0.25)
    followed.look()
    assert followed.lineup().canary_share == 0.25


def test_a_canary_that_failed_is_told_of_until_the_labels_change(followed: Followed) -> None:
    """Only where its share can't be taken here; though others can't be told now, nor remember."""
    heard: list[Withdrawal] = []
    silent = True

    async def tell(model: str, withdrawal: Withdrawal) -> None:
        if silent:
            raise Unavailable("no Redis")
        assert model == "toy"
        heard.append(withdrawal)

    followed.registry = followed.another(tell)
    followed.labels.promote(1)
    labels = followed.labels.start_canary(2, 0.5)
    asyncio.run(followed.registry.renew())
    followed.labels_are_read_only(True)
    fail(followed, canary=10, of=10)
    asyncio.run(followed.registry.renew())
    silent = False
    for _ in range(2):
        asyncio.run(followed.registry.renew())
    assert [(each.version, each.since) for each in heard] == [(2, labels.canary_since)] * 2
    assert "10 of 10 requests failed" in heard[0].why
    followed.labels_are_read_only(False)
    asyncio.run(followed.registry.renew())
    assert followed.labels.read().canary_share == 0
    assert len(heard) == 2


def test_a_canary_that_is_started_again_unseen_is_tried_again(followed: Followed) -> None:
    """With the same share, between two looks, while it was withdrawn here."""
    followed.labels.promote(1)
    followed.labels.start_canary(2, 0.5)
    followed.look()
    followed.labels_are_read_only(True)
    fail(followed, canary=10, of=10)
    followed.look()
    followed.labels_are_read_only(False)
    followed.labels.stop_canary()
    followed.labels.start_canary(2, 0.5)
    followed.look()
    assert followed.lineup().canary_share == 0.5
    fail(followed, canary=9, of=9)
    assert followed.lineup().canary_share == 0.5


def test_labels_that_could_not_be_written_for_a_while_are_written_then(
    followed: Followed, caplog: pytest.LogCaptureFixture
) -> None:
    """So that a service that starts later does not give the canary its traffic again; the trouble
    is told once."""
    followed.labels.promote(1)
    followed.labels.start_canary(2, 0.5)
    followed.look()
    followed.labels_are_read_only(True)
    fail(followed, canary=10, of=10)
    for _ in range(3):
        followed.look()
    followed.labels_are_read_only(False)
    followed.look()
    assert followed.labels.read().canary_share == 0
    assert caplog.text.count("can't be written") == 1


def test_a_look_that_began_before_a_canary_failed_does_not_bring_it_back(
    followed: Followed,
) -> None:
    """What it found is taken without the share that was withdrawn meanwhile."""
    followed.labels.promote(1)
    followed.labels.start_canary(2, 0.5)
    followed.look()
    followed.labels.start_shadow(3, 0.5)
    found = followed.registry.look()
    assert found is not None
    fail(followed, canary=10, of=10)
    followed.registry.take(found)
    assert followed.lineup().canary_share == 0
    assert followed.lineup().shadow is not None


def test_another_canary_is_judged_by_its_own_requests(followed: Followed) -> None:
    """What the one before did wrong is forgotten."""
    followed.labels.promote(1)
    followed.labels.start_canary(2, 0.5)
    followed.look()
    fail(followed, canary=9, of=9)
    followed.labels.start_canary(3, 0.5)
    followed.look()
    fail(followed, canary=9, of=9)
    assert followed.lineup().canary_share == 0.5

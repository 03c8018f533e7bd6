"""The shadow: a version scored beside the stable one never stands in anyone's way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from scipy.stats import spearmanr  # of the dev extra's scikit-learn

from model.contract.batch import Batch
from model.contract.repository import Repository
from model.contract.schema import Schema
from service.encoding import encode
from service.engine import Engine, OnnxEngine, Scores, expit
from service.features import Stored
from service.shadow import WAITING, Shadow, rank_correlation
from service.telemetry import Telemetry
from service.verify import Version, verify
from service.wire import Ask
from tests.support import ITEMS, TOY, publish_toy

ASK = Ask(user="u", candidates=ITEMS[:20])


def cpu(graph: Path) -> Engine:
    return OnnxEngine.open(graph, "cpu")


def version(root: Path, number: int, opening: Callable[[Path], Engine] = cpu) -> Version:
    return verify(Repository(root, "toy"), number, opening)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("repository")
    publish_toy(found)
    publish_toy(found, bias=0.5)
    text = TOY.replace('name = "rating"', 'name = "dwell"').replace('name = "hour"', 'name = "day"')
    publish_toy(found, schema_text=text)
    return found


def scores(one: Version, asked: Ask = ASK) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    batch = encode(asked, Stored(one.encoder.codec.empty()), one.encoder).batch
    return expit(one.engine.run(batch).logit.astype(np.float64))


def read(_schema: Schema) -> Ask:
    return ASK


def metrics(telemetry: Telemetry) -> dict[str, float]:
    """Values by name and labels."""
    families = text_string_to_metric_families(telemetry.render().decode())
    return {
        " ".join([sample.name, *(value for key, value in sample.labels.items() if key != "le")]): (
            sample.value
        )
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }


def shadowed(telemetry: Telemetry, stable: Version, shadow: Version, times: int = 1) -> None:
    async def scenario() -> None:
        async with Shadow(telemetry) as running:
            for _ in range(times):
                stored = Stored(stable.encoder.codec.empty())
                running.offer(shadow, read, ASK, stored, stable, scores(stable))
                while not running.idle():
                    await asyncio.sleep(0.001)

    asyncio.run(scenario())


def test_the_difference_of_scores_is_measured(root: Path) -> None:
    """Mean and largest |difference| of the probabilities, and that the order is the same."""
    telemetry, stable, other = Telemetry(), version(root, 1), version(root, 2)
    shadowed(telemetry, stable, other)
    found = metrics(telemetry)
    difference = np.abs(scores(stable) - scores(other))
    assert found["dinserve_shadow_difference_mean_sum"] == pytest.approx(difference.mean())
    assert found["dinserve_shadow_difference_max_sum"] == pytest.approx(difference.max())
    assert found["dinserve_shadow_rank_correlation_sum"] == pytest.approx(1)
    assert found["dinserve_shadow_requests_total scored"] == 1


def test_a_shadow_of_another_schema_reads_the_request_in_its_own_way(root: Path) -> None:
    """The body is read anew with its schema, the history taken over in its layout."""
    telemetry, stable, other = Telemetry(), version(root, 1), version(root, 3)
    asked: list[Schema] = []
    records = stable.encoder.records([{"item_id": "i1", "ts": 1, "rating": "5"}])

    def reading(schema: Schema) -> Ask:
        asked.append(schema)
        return ASK

    async def scenario() -> None:
        async with Shadow(telemetry) as running:
            running.offer(other, reading, ASK, Stored(records), stable, scores(stable))
            while not running.idle():
                await asyncio.sleep(0.001)

    asyncio.run(scenario())
    assert asked == [other.schema]
    assert metrics(telemetry)["dinserve_shadow_requests_total scored"] == 1


class Slow:
    """An engine that waits for a test, or fails."""

    provider = "cpu"

    def __init__(self, graph: Path) -> None:
        self._inner = cpu(graph)
        self.gate = threading.Event()
        self.gate.set()
        self.failing = False

    def run(self, batch: Batch, weight: bool = False) -> Scores:
        assert self.gate.wait(120)
        if self.failing:
            raise RuntimeError("s3cr3t")
        return self._inner.run(batch, weight)


def test_what_a_busy_shadow_can_not_take_is_passed_over(root: Path) -> None:
    """Offering never waits: beyond a few requests they are counted and dropped."""
    telemetry, stable, other = Telemetry(), version(root, 1), version(root, 2, Slow)
    assert isinstance(other.engine, Slow)
    given = (stable, scores(stable))

    async def scenario() -> None:
        async with Shadow(telemetry) as running:
            other.engine.gate.clear()  # type: ignore[attr-defined]
            for _ in range(WAITING + 3):
                running.offer(other, read, ASK, Stored(stable.encoder.codec.empty()), *given)
            assert not running.idle()
            other.engine.gate.set()  # type: ignore[attr-defined]
            while not running.idle():
                await asyncio.sleep(0.001)

    asyncio.run(scenario())
    found = metrics(telemetry)
    assert found["dinserve_shadow_requests_total skipped"] == 3
    assert found["dinserve_shadow_requests_total scored"] == WAITING


def test_a_shadow_that_fails_is_counted(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The next request is scored again; the log has the kind of error and no more."""
    telemetry, stable, other = Telemetry(), version(root, 1), version(root, 2, Slow)
    other.engine.failing = True  # type: ignore[attr-defined]
    shadowed(telemetry, stable, other)
    other.engine.failing = False  # type: ignore[attr-defined]
    shadowed(telemetry, stable, other)
    found = metrics(telemetry)
    assert found["dinserve_shadow_requests_total failed"] == 1
    assert found["dinserve_shadow_requests_total scored"] == 1
    assert "RuntimeError" in caplog.text
    assert "s3cr3t" not in caplog.text


def test_the_rank_correlation_is_spearmans() -> None:
    """Equal scores share their ranks; without two different scores there is none."""
    generator = np.random.default_rng(5)
    for count in (4, 50, 2000):
        one = np.arange(count) // 2 / 7
        two = one + generator.normal(size=count)
        expected = spearmanr(one, two).statistic
        assert rank_correlation(one, two) == pytest.approx(expected, abs=1e-12)
    assert rank_correlation(np.array([1.0, 2.0]), np.array([2.0, 1.0])) == pytest.approx(-1)
    assert rank_correlation(np.array([1.0]), np.array([1.0])) is None
    assert rank_correlation(np.array([1.0, 1.0]), np.array([1.0, 2.0])) is None

"""Scores of impressions by a published version."""

from __future__ import annotations

import numpy as np
import pytest

from model.contract.repository import Repository
from model.contract.schema import Schema
from tests.training import shop
from tests.training.test_job import ONE, QUICK, command
from training.calibrate import sigmoid
from training.dataset import build
from training.logs import Logs
from training.run import Run
from training.scores import recast, scored
from training.trainer import predict


@pytest.fixture(scope="module")
def published(shop_logs: Logs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Repository, Run]:
    folder = tmp_path_factory.mktemp("scores")
    shop_logs.write(folder / "data")
    fit = ("fit", "--data", folder / "data", "--out", folder / "run")
    assert command(*fit, *ONE, *QUICK, "--set", "attention=[6]") == 0
    assert command("export", "--run", folder / "run", "--repository", folder) == 0
    return Repository(folder, "shop"), Run(folder / "run")


def test_a_version_scores_as_the_network_it_is_of(
    published: tuple[Repository, Run], shop_logs: Logs
) -> None:
    """Every test impression, with the history it saw, in the same order; both tasks."""
    repository, run = published
    encoder = run.encoder()
    test = build(shop_logs, encoder)["test"]
    logits = predict(run.network(encoder), test)
    expected = sigmoid(run.calibration().apply(logits))
    found = scored(repository.open(1), shop_logs)
    assert found.shape == test.label.shape
    assert (test.stop > test.start).any()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_logs_of_another_schema_are_scored_too(
    published: tuple[Repository, Run], shop_logs: Logs
) -> None:
    """What they lack is missing to the version, what is too much it does not see."""
    version = published[0].open(1)
    text = shop.SCHEMA + '\n[[context]]\nname = "weather"\n'
    more = recast(shop_logs, Schema.parse(text))
    assert more.events["weather"].is_null().all()
    more.check()
    np.testing.assert_array_equal(scored(version, more), scored(version, shop_logs))
    less = recast(shop_logs, Schema.parse(shop.SCHEMA.replace('[[context]]\nname = "hour"\n', "")))
    assert "hour" not in less.events.columns
    other = scored(version, less)
    assert other.shape == scored(version, shop_logs).shape
    assert np.abs(other - scored(version, shop_logs)).max() > 0

"""Logs that several tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.contract.encode import Encoder
from tests.training import shop
from tests.training.prepared import read_tables
from training.dataset import Dataset, build, learn_encoder
from training.logs import Logs


@pytest.fixture(scope="session")
def shop_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    shop.write(folder)
    return folder


@pytest.fixture(scope="session")
def shop_logs(shop_folder: Path) -> Logs:
    return read_tables(shop_folder, shop_folder / "schema.toml")


@pytest.fixture(scope="session")
def shop_encoder(shop_logs: Logs) -> Encoder:
    return learn_encoder(shop_logs)


@pytest.fixture(scope="session")
def shop_sets(shop_logs: Logs, shop_encoder: Encoder) -> dict[str, Dataset]:
    return build(shop_logs, shop_encoder)

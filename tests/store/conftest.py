"""One cluster for all tests of the store."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.store.forms import Cluster, running_cluster


@pytest.fixture(scope="session")
def cluster_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture
def cluster(cluster_process: Cluster) -> Cluster:
    """An empty one."""
    cluster_process.flush()
    return cluster_process

"""The graphs that all tests of the service yardsticks serve: exporting them takes seconds."""

from __future__ import annotations

import pytest

from bench import graph
from bench.graph import Exported


@pytest.fixture(scope="session")
def exported() -> Exported:
    return graph.exported("sigmoid", longest=400)

"""For all tests."""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Generator

import pytest
from hypothesis import settings

# Machines that run tests are shared: how long an example takes says nothing.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Modules and tests are no garbage: looking through them time and again took a third of what
    tests take that make many objects, and a seventh of what it takes to import and collect them."""
    gc.disable()
    found = yield
    gc.collect()
    gc.freeze()
    gc.enable()
    return found


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """One thread for small tensors, whatever a command in the process of a test before was given: a
    forked process would wait for threads that it has not got."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """Likewise for a command that prepares the test."""
    pytest_runtest_setup()


@pytest.fixture(autouse=True, scope="session")
def one_registry() -> None:
    """Torch builds its table of operators, from the source of 500 functions, anew for each export:
    a third of what an export of a small network takes. Here one table serves all."""
    if "training.export" in sys.modules:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))

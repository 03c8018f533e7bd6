"""The graphs that all tests of the service yardsticks serve: exporting them takes seconds."""

from __future__ import annotations

import fcntl
import os

import pytest

from bench import graph
from bench.graph import Exported

LONGEST = 400


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Exported by one of pytest's workers for all of them."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    paths = [folder / name for name in ("ours.onnx", "reference.onnx")]
    with (folder / "graphs.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not paths[-1].exists():
            made = graph.exported("sigmoid", LONGEST)
            for path, content in zip(paths, (made.ours, made.reference), strict=True):
                path.write_bytes(content)
    encoder = graph.encoder(LONGEST)
    ours, reference = (path.read_bytes() for path in paths)
    return Exported(encoder, graph.network(encoder, "sigmoid"), ours, reference)

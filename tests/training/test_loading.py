"""How PyTorch's import is told: its end is about where it is said to be."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from training import export
from training.loading import MODULES, STAGE, loading

PROGRAM = """
import json, sys
import terminal.progress, training.__main__
from training.loading import loading
told = []
with loading(lambda *each: told.append(each[:3])):
    import {module}
print(json.dumps(told))
"""


@pytest.mark.parametrize("module", ["training.publish", "training.retrain"])
def test_modules_are_counted_up_to_about_as_many_as_there_are(module: str) -> None:
    """From none to all of them, one by one; what a command needs is within a quarter of it."""
    program = [sys.executable, "-c", PROGRAM.format(module=module)]
    ended = subprocess.run(program, capture_output=True, text=True, check=True)
    told = json.loads(ended.stdout)
    assert {(stage, total) for stage, _, total in told} == {(STAGE, MODULES)}
    done = [each for _, each, _ in told]
    assert done[:3] == [0, 1, 2]
    assert done == sorted(done)
    assert done[-1] == MODULES
    assert 0.75 * MODULES < len(done) - 2 < 1.25 * MODULES


EXPORT = """
import json
from training import export
from training.calibrate import Calibration
from training.dataset import learn_encoder
from training.world import World
from model.zoo import configure
told = []
encoder = learn_encoder(World(users=20, items=60, categories=20, seed_clicks=5).logs(30))
sizes = {name: table.size for name, table in encoder.tables.items()}
network = configure("base", {"head": [8]}).build(encoder.schema, sizes)
export.export(network, Calibration((1.0,), (0.0,)), encoder, lambda *each: told.append(each[1:3]))
print(json.dumps(told))
"""


def test_an_export_is_counted_up_to_about_as_much_as_it_imports_and_does() -> None:
    """The first of a process, which imports the exporter: the time left is told from its start."""
    program = [sys.executable, "-c", EXPORT]
    ended = subprocess.run(program, capture_output=True, text=True, check=True)
    told = json.loads(ended.stdout.splitlines()[-1])
    total = export.MODULES + export.STEPS * export.STEP
    assert {of for _, of in told} == {total}
    done = [each for each, _ in told]
    assert done[:3] == [0, 1, 2]
    assert done[-1] == total
    steps = [each for each in done[:-1] if each < total - 1]
    assert 0.75 * total < steps[-1]
    assert len(done) - len(steps) < 0.25 * export.MODULES  # told at the end, when all is counted


def test_an_import_that_fails_is_not_told_as_done() -> None:
    told = list[int]()
    before = list(sys.meta_path)
    with pytest.raises(ImportError), loading(lambda _, done, *__: told.append(done)):
        import nothing.of_this_name  # noqa: F401
    assert sys.meta_path == before
    assert told == [0, 1]

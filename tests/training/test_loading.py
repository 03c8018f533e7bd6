"""How PyTorch's import is told: its end is about where it is said to be."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

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


@pytest.mark.parametrize("module", ["training.fit", "training.publish", "training.retrain"])
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


def test_an_import_that_fails_is_not_told_as_done() -> None:
    told = list[int]()
    before = list(sys.meta_path)
    with pytest.raises(ImportError), loading(lambda _, done, *__: told.append(done)):
        import nothing.of_this_name  # noqa: F401
    assert sys.meta_path == before
    assert told == [0, 1]

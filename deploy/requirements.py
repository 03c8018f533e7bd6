"""The packages of some extras of pyproject.toml, one a line: what a layer of an image installs.

A list of its own, since an image's packages must not depend on what else stands in that file.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path


def requirements(project: Path, extras: Sequence[str]) -> list[str]:
    """What the project and these of its extras need, each once. Raises KeyError."""
    about = tomllib.loads(project.read_text())["project"]
    of_extras = (each for extra in extras for each in about["optional-dependencies"][extra])
    return list(dict.fromkeys([*about["dependencies"], *of_extras]))


if __name__ == "__main__":
    print(*requirements(Path("pyproject.toml"), sys.argv[1:]), sep="\n")

"""The compose file and the Dockerfile as their tests read them."""

from __future__ import annotations

import re
from typing import Any

import yaml

from tests.support import ROOT

COMPOSE = ROOT / "docker-compose.yml"
GPU = ROOT / "deploy/compose.gpu.yml"
DOCKERFILE = ROOT / "Dockerfile"

SERVICES: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
OURS = {name: each for name, each in SERVICES.items() if "build" in each}


def stages() -> dict[str, list[tuple[str, str]]]:
    """The Dockerfile's instructions by stage, each as its word and the rest; "" is before any."""
    lines = [
        line for line in DOCKERFILE.read_text().splitlines() if not line.strip().startswith("#")
    ]
    text = "\n".join(lines).replace("\\\n", " ")
    found: dict[str, list[tuple[str, str]]] = {"": []}
    stage = ""
    for line in filter(None, text.splitlines()):
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            stage = rest.rsplit(" AS ", 1)[1]
            found[stage] = []
        found[stage].append((word, re.sub(r"\s+", " ", rest)))
    return found


def lineage(stage: str) -> list[tuple[str, str]]:
    """The instructions that make a stage, those of the stages it is built on first."""
    own = stages()[stage]
    source = own[0][1].split(" AS ")[0]
    return [*(lineage(source) if source in stages() else []), *own[1:]]


def copied(stage: str) -> list[str]:
    """What a stage and those it is built on copy out of the checkout."""
    found = [rest.split() for word, rest in lineage(stage) if word == "COPY"]
    return [path for words in found if "--from" not in words[0] for path in words[:-1]]


def sent() -> set[str]:
    """All that the Dockerfile copies out of the checkout."""
    return {path for stage in stages() if stage for path in copied(stage)}

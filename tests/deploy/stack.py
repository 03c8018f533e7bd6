"""The stack of the compose file, run for real from a copy of the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deploy.compose_file import OURS, sent
from tests.support import ROOT, free_port

FILES = {"Dockerfile", ".dockerignore", "docker-compose.yml", "deploy"}
ENGINE = ROOT.parent / "shared/containers/setup-docker.sh"
# A machine's own settings must not change what is tested; these reach the engine and packages.
PASSED_ON = ("PATH", "HOME", "DOCKER_HOST", "DOCKER_CONFIG", "PIP_EXTRA_INDEX_URL")
_SECONDS = 1800


def need_engine() -> None:
    """Skips where no engine is named by DOCKER_HOST; in CI fails, where one can be had."""
    command = ["docker", "compose", "ls", "--quiet"]
    answers = shutil.which("docker") is not None and "DOCKER_HOST" in os.environ
    answers = answers and subprocess.run(command, capture_output=True, check=False).returncode == 0
    if answers:
        return
    reason = "no container engine: DOCKER_HOST names none that answers, with docker compose"
    if os.environ.get("CI") and ENGINE.exists():
        pytest.fail(reason)
    pytest.skip(reason)


class Stack:
    """A project of its own, with images, volumes, networks and a port of its own."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        for name in FILES | {path.split("/")[0] for path in sent()}:
            source, target = ROOT / name, folder / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
        self.project = self.tag = f"dinserve-test-{os.getpid()}"
        port = free_port()
        own = {"COMPOSE_PROJECT_NAME": self.project, "IMAGE_TAG": self.tag}
        own |= {"SERVICE_PORT": str(port), "REVISION": "0123abc", **settings}
        self.environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        self.environment |= own
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120)

    def close(self) -> None:
        """Take everything away again."""
        self.client.close()
        self.compose("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "10")
        images = {each["image"].split(":")[0] for each in OURS.values()}
        self.docker("image", "rm", "--force", *(f"{image}:{self.tag}" for image in images))

    def compose(self, *words: str, **settings: str) -> str:
        """`docker compose words`; what it said. Fails the test with that, where it fails."""
        return self._run("docker", "compose", *words, **settings)

    def docker(self, *words: str) -> str:
        return self._run("docker", *words)

    def inspect(self, service: str) -> dict[str, Any]:
        """What the engine knows of a service's container."""
        container = self.compose("ps", "--all", "--quiet", service).strip()
        found: dict[str, Any] = json.loads(self.docker("inspect", container))[0]
        return found

    def size(self, image: str) -> int:
        """Bytes of all layers of an image."""
        return int(self.docker("image", "inspect", "--format", "{{.Size}}", image))

    def inside(self, service: str, *words: str) -> str:
        """Run a command in a running container; its output."""
        return self.compose("exec", "--no-TTY", service, *words)

    def score(self, user: str, *items: str) -> Any:
        """The answer of `POST /score`, which must be 200."""
        answer = self.client.post("/score", json={"user_id": user, "candidates": items})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def _run(self, *words: str, **settings: str) -> str:
        ended = subprocess.run(
            words,
            cwd=self.folder,
            env={**self.environment, **settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=_SECONDS,
        )
        if ended.returncode:
            said = "\n".join(ended.stdout.splitlines()[-60:])
            pytest.fail(f"{' '.join(map(str, words))}: exit code {ended.returncode}\n{said}")
        return ended.stdout


def until(done: Callable[[], bool], what: str, seconds: float = 600) -> None:
    """Wait for something that needs its time; fails the test when it takes far too long."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.2)


def status_of(text: str) -> Mapping[str, str]:
    """/proc/PID/status by name."""
    lines = (line.partition(":") for line in text.splitlines())
    return {name: value.strip() for name, _, value in lines}

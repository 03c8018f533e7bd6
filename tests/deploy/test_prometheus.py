"""A real Prometheus with our configuration, beside a real service."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import ROOT, Service, free_port, publish_toy, running_redis

CONFIGURED = ROOT / "deploy/prometheus"
_DISCOVERED = re.compile(r"dns_sd_configs:\n\s+- \{names: \[(\w+)\].*\}")


def configuration(folder: Path, ports: dict[str, int]) -> Path:
    """Ours, with containers' names as ports of this machine, and quicker."""
    text = (CONFIGURED / "prometheus.yml").read_text()
    targets = r"static_configs: [{{targets: ['127.0.0.1:{}']}}]"
    text = _DISCOVERED.sub(lambda found: targets.format(ports[found[1]]), text)
    (folder / "prometheus.yml").write_text(text.replace("15s", "1s"))
    shutil.copy(CONFIGURED / "alerts.yml", folder)
    return folder / "prometheus.yml"


@contextmanager
def running_prometheus(folder: Path, ports: dict[str, int]) -> Iterator[httpx.Client]:
    """Its API. Skips where it is not installed, and fails in CI where it can be."""
    program = shutil.which("prometheus")
    if program is None:
        if os.environ.get("CI") and shutil.which("apt-get"):
            pytest.fail("no prometheus: install Debian's package prometheus")
        pytest.skip("no prometheus: install Debian's package prometheus")
    port = free_port()
    options = [f"--config.file={configuration(folder, ports)}"]
    options += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen([program, *options], stdout=log, stderr=log) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=60) as client,
    ):
        try:
            yield client
        finally:
            process.kill()


def eventually(client: httpx.Client, expression: str, expected: float) -> None:
    """Wait until the sum of an expression is what is expected."""
    found: Any = None
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            answer = client.get("/query", params={"query": f"sum({expression})"})
            if answer.status_code != 503:  # which it says until it is ready
                found = [float(each["value"][1]) for each in answer.json()["data"]["result"]]
        except httpx.TransportError:
            pass
        if found == [expected]:
            return
        time.sleep(0.2)
    pytest.fail(f"{expression}: {found}, not {expected}")


def test_prometheus_scrapes_a_service_and_evaluates_every_rule(tmp_path: Path) -> None:
    """It sees the service and its requests, and that the collector is not there; no rule fails, and
    none is quiet because its expression is wrong."""
    repository = tmp_path / "repository"
    publish_toy(repository)
    nobody = free_port()
    with (
        running_redis(tmp_path) as redis,
        Service(repository, redis.url, log=tmp_path / "service.log") as service,
        running_prometheus(tmp_path, {"service": service.port, "collector": nobody}) as client,
    ):
        eventually(client, 'up{job="dinserve"}', 1)
        eventually(client, 'up{job="dinserve-collector"}', 0)
        for _ in range(3):
            assert service.score(user_id="u", candidates=["i1", "i2"]).status_code == 200
        eventually(client, 'dinserve_requests_total{status="200"}', 3)
        eventually(client, "dinserve_candidates_sum", 6)
        deadline = time.monotonic() + 120
        while True:
            groups = client.get("/rules").json()["data"]["groups"]
            health = {rule["name"]: rule["health"] for each in groups for rule in each["rules"]}
            if "unknown" not in health.values():
                break
            assert time.monotonic() < deadline, health
            time.sleep(0.2)
    assert len(health) > 20
    assert set(health.values()) == {"ok"}

"""Every metric that the system exports, read from what really exports it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from typing import NamedTuple

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from service.telemetry import Telemetry
from training.announce import _registry as retrained
from training.telemetry import Live
from training.telemetry import Telemetry as Collector

OUTCOME = {
    "status": "published",
    "seconds": 1.0,
    "version": 2,
    "metrics": {
        "impressions": 10,
        "ranked_by": "gauc",
        **{of: {"ranking": (0.6, 0.5, 0.7)} for of in ("candidate", "current", "change")},
    },
}


class Told(NamedTuple):
    """What an exporter says of a metric."""

    kind: str
    help: str


def service_text() -> str:
    return Telemetry().render().decode()


def collector_text() -> str:
    telemetry = Collector()
    telemetry.show(Live({}, {}))
    return generate_latest(telemetry.registry).decode()


def retrain_text() -> str:
    return generate_latest(retrained("toy", OUTCOME)).decode()


def families(text: str) -> Mapping[str, Told]:
    """Metrics by the name that Prometheus knows them by, without those of the client itself."""
    found = {}
    for family in text_string_to_metric_families(text):
        name = family.name + ("_total" if family.type == "counter" else "")
        if not name.endswith("_created"):
            found[name] = Told(family.type, family.documentation)
    return found


def series() -> set[str]:
    """Names of the series of all exporters together."""
    found = set()
    for text in (service_text(), collector_text(), retrain_text()):
        for name, told in families(text).items():
            ends = ("_bucket", "_sum", "_count") if told.kind == "histogram" else ("",)
            found |= {name + end for end in ends}
    return found


def promtool(*words: str, text: str = "") -> str:
    """What promtool says of it; fails where it finds fault. Skips where it is not installed,
    and fails in CI where it can be."""
    program = shutil.which("promtool")
    if program is None:
        if os.environ.get("CI") and shutil.which("apt-get"):
            pytest.fail("no promtool: install Debian's package prometheus")
        pytest.skip("no promtool: install Debian's package prometheus")
    ended = subprocess.run(
        [program, *words], input=text, capture_output=True, text=True, timeout=300, check=False
    )
    said = ended.stdout + ended.stderr
    assert ended.returncode == 0, said
    return said

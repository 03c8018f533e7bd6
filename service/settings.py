"""The settings: everything that can be set from outside, and the only reader of the environment.

Each field is the variable ``DINSERVE_<FIELD>`` (``runs_side_by_side`` is ``DINSERVE_RUNS``); the
command line's options win over it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

Provider = Literal["auto", "cpu", "cuda"]


def cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Settings(BaseSettings):
    """One service; limits are of each of its processes. Times in the unit their name says; a pair
    is candidate x behaviour."""

    model_config = SettingsConfigDict(env_prefix="DINSERVE_", frozen=True, populate_by_name=True)

    repository: Path = Field(Path("var/repository"), description="folder of published models")
    name: str | None = Field(None, description="the model to serve; not needed if it is the only")
    redis_url: str = "redis://127.0.0.1:6379/0"
    key_prefix: str = Field("din", pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)

    provider: Provider = "auto"
    workers: int = Field(1, ge=1, le=256, description="processes; on CUDA one only")
    threads: int = Field(1, ge=1, le=256, description="threads of one run of the model")
    runs_side_by_side: int | None = Field(
        None,
        ge=1,
        le=256,
        validation_alias="DINSERVE_RUNS",
        description="in each process; default: cores / threads / workers, 2 on CUDA",
    )
    poll_seconds: float = Field(1.0, gt=0, description="how often a newer version is looked for")

    admin_host: str = "127.0.0.1"
    admin_port: int = Field(8001, ge=0, le=65535)
    admin_key: SecretStr | None = Field(
        None, min_length=16, description="what callers of the admin API must know"
    )

    max_bundle_bytes: int = Field(
        16 * 2**30, ge=1, description="a version whose files are more is refused"
    )
    canary_band: float = Field(
        0.02, ge=0, le=1, description="how much more of its requests a canary may fail than stable"
    )
    canary_requests: int = Field(200, ge=1, description="requests of it before that is judged")

    store_timeout_ms: float = Field(40.0, gt=0, le=10_000, description="all of a history's read")
    store_connections: int = Field(64, ge=1)
    breaker_failures: int = Field(5, ge=1, description="failures in a row that open the breaker")
    breaker_seconds: float = Field(1.0, gt=0, description="how long it stays open")

    timeout_ms: int = Field(1000, ge=1, le=60_000, description="deadline of a request without one")
    body_timeout_seconds: float = Field(10.0, gt=0)
    max_body_bytes: int = Field(2**20, ge=1)
    max_queued_pairs: int = Field(
        4_000_000, ge=1, description="pairs that may wait; beyond, requests are refused with 503"
    )
    merge_pairs: int | None = Field(
        None, ge=0, description="requests share a call up to this; default: as it pays, measured"
    )
    keep_alive_seconds: int = Field(30, ge=1)

    history_days: int = Field(
        90, ge=1, le=3650, description="how old an event may be; time to live of histories and logs"
    )
    erased_days: int = Field(400, ge=1, le=3650, description="time to live of tombstones")
    event_timeout_ms: float = Field(3000.0, gt=0, le=60_000, description="of each write to Redis")
    log_share: float = Field(
        0.0, ge=0, le=1, description="of the answered requests that are logged, by their id's hash"
    )
    log_entries: int = Field(
        2**20, ge=64, description="the log may hold so many before it is collected"
    )

    traces: str | None = Field(
        None,
        pattern=r"^https?://",
        validation_alias=AliasChoices("DINSERVE_TRACES", "OTEL_EXPORTER_OTLP_ENDPOINT"),
        description="URL of an OpenTelemetry collector (OTLP over HTTP) that gets traces",
    )

    def runs(self, on_device: bool) -> int:
        """Runs of the model side by side in one process."""
        share = 2 if on_device else max(1, cores() // self.threads // self.workers)
        return self.runs_side_by_side or share

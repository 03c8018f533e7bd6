"""The settings: everything that can be set from outside, and the only reader of the environment.

Each field is the variable ``DINSERVE_<FIELD>`` (``runs_side_by_side`` is ``DINSERVE_RUNS``), unset
where it is empty; the command line's options win over it. docs/settings.md lists them:
`service.settings_table`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.cores import cores
from store.url import StoreUrl

Provider = Literal["auto", "cpu", "cuda"]


class Settings(BaseSettings):
    """One service; limits are of each of its processes. Times in the unit their name says; a pair
    is candidate x behaviour."""

    model_config = SettingsConfigDict(
        env_prefix="DINSERVE_", env_ignore_empty=True, frozen=True, populate_by_name=True
    )

    repository: Path = Field(Path("var/repository"), description="folder of published models")
    mirror: str | None = Field(
        None,
        pattern=r"^[a-z0-9+]+://",
        description="URL of a repository on an object store, of which that folder is then a copy",
    )
    name: str | None = Field(
        None, description="the model to serve; default: the one published last"
    )
    redis_url: str = Field(
        "redis://127.0.0.1:6379/0", description="the store: one Redis, Sentinels or a cluster"
    )
    key_prefix: str = Field(
        "din", pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="of all keys in Redis"
    )
    ready_without_redis: bool = Field(
        False, description="be ready before Redis has answered for the first time"
    )
    host: str = Field("127.0.0.1", description="address to bind")
    port: int = Field(8000, ge=0, le=65535, description="port to bind; 0 picks one")

    drain_seconds: float = Field(
        5.0,
        ge=0,
        le=3600,
        description="told to end, serve on but be not ready for so long; then close the port",
    )
    grace_seconds: float = Field(
        20.0,
        gt=0,
        le=7200,
        description="told to end, end within so long, the drain included; the rest is cut off",
    )

    provider: Provider = Field("auto", description="where the model runs: auto, cpu or cuda")
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

    admin_host: str = Field("127.0.0.1", description="address of the admin API")
    admin_port: int = Field(8001, ge=0, le=65535, description="port of the admin API; 0 picks one")
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
    store_connections: int = Field(
        64, ge=1, description="to each Redis, for reading and for writing"
    )
    breaker_failures: int = Field(5, ge=1, description="failures in a row that open the breaker")
    breaker_seconds: float = Field(1.0, gt=0, description="how long it stays open")

    timeout_ms: int = Field(1000, ge=1, le=60_000, description="deadline of a request without one")
    body_timeout_seconds: float = Field(10.0, gt=0, description="for a body to arrive")
    max_body_bytes: int = Field(2**20, ge=1, description="of a request")
    max_queued_pairs: int = Field(
        4_000_000, ge=1, description="pairs that may wait; beyond, requests are refused with 503"
    )
    merge_pairs: int | None = Field(
        None, ge=0, description="requests share a call up to this; default: as it pays, measured"
    )
    keep_alive_seconds: int = Field(30, ge=1, description="an idle connection stays open")

    history_days: int = Field(
        90, ge=1, le=3650, description="how old an event may be; time to live of histories and logs"
    )
    erased_days: int = Field(
        400, ge=1, le=3650, description="time to live of tombstones; at least DINSERVE_HISTORY_DAYS"
    )
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

    @field_validator("redis_url")
    @classmethod
    def _of_a_store(cls, url: str) -> str:
        StoreUrl.parse(url)
        return url

    @model_validator(mode="after")
    def _stays_erased(self) -> Self:
        if self.erased_days < self.history_days:
            raise ValueError(
                f"DINSERVE_ERASED_DAYS ({self.erased_days}) has to be at least "
                f"DINSERVE_HISTORY_DAYS ({self.history_days}): events from before an erasure could "
                "come back once its tombstone has gone"
            )
        return self

    @model_validator(mode="after")
    def _ends_in_time(self) -> Self:
        if self.grace_seconds <= self.drain_seconds:
            raise ValueError("grace_seconds is longer than drain_seconds")
        return self

    def runs(self, on_device: bool) -> int:
        """Runs of the model side by side in one process."""
        share = 2 if on_device else max(1, cores() // self.threads // self.workers)
        return self.runs_side_by_side or share

"""A small service on paper: it keeps histories as the store does, scores with a real bundle, and
writes down the entries of the log."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from model.contract.bundle import Bundle
from model.contract.encode import Request
from model.contract.history import recent
from model.contract.log import Entry, Event, Scored, Snapshot, digests
from model.contract.repository import Repository
from tests.support import publish_toy
from training.export import run, session
from training.logs import Logs

MORNING = 1_700_006_400  # 2023-11-15 00:00 UTC
Raw = Mapping[str, Any]


def base_logs(folder: Path, schema_text: str) -> Logs:
    """Prepared logs of a toy: two users, the first with two behaviours and an impression."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "toy.toml"
    path.write_text(schema_text)
    events = pl.DataFrame(
        {
            "user_id": ["u0", "u0", "u0"],
            "item_id": ["i1", "i2", "i3"],
            "ts": [MORNING - 90, MORNING - 90, MORNING - 50],
            "behaviour": [True, True, False],
            "split": [None, None, "train"],
            "ctr": pl.Series([None, None, 1], dtype=pl.Int8),
            "rating": ["5", None, None],
            "hour": [None, None, "7"],
            "price": pl.Series([None, None, 1.5], dtype=pl.Float64),
        }
    )
    items = pl.DataFrame({"item_id": ["i1", "i2"], "genre": [["comedy"], ["noir"]]})
    users = pl.DataFrame({"user_id": ["u0", "u9"], "gender": ["F", "M"], "income": [12.5, None]})
    logs = Logs.build(path, events, items, users)
    path.unlink()
    return logs


@dataclass
class Live:
    """One version of the toy model, all users' behaviours in the order of the store, the log."""

    bundle: Bundle
    version: int
    histories: dict[str, list[Raw]] = field(default_factory=lambda: defaultdict(list))
    entries: list[Entry] = field(default_factory=list)

    @classmethod
    def start(cls, repository: Path, base: Logs, **options: Any) -> Live:
        version = publish_toy(repository, **options)
        live = cls(Repository(repository, "toy").open(version), version)
        for row in base.events.filter("behaviour").to_dicts():
            live.histories[row["user_id"]].append(
                {name: row[name] for name in ("item_id", "ts", "rating")}
            )
        return live

    def event(
        self, user: str, item: str, action: str, ts: int, request: str | None = None, **fields: Any
    ) -> None:
        """An event that comes now."""
        event = Event(user, item, action, ts, ts * 1000, request, fields)
        self.entries.append(event)
        schema = self.bundle.schema
        if action in schema.history_actions:
            history, raw = self.histories[user], event.raw(schema)
            if not any(self._same(raw, each) for each in history):
                after = sum(each["ts"] <= ts for each in history)
                history.insert(after, raw)

    def score(
        self,
        request: str,
        user: str,
        candidates: Sequence[str],
        ts: int,
        *,
        profile: Raw | None = None,
        context: Raw | None = None,
        columns: Mapping[str, Sequence[Any]] | None = None,
        history: Sequence[Raw] | None = None,
        degraded: str | None = None,
    ) -> Scored:
        """An answer, made and logged now."""
        encoder, schema = self.bundle.encoder, self.bundle.schema
        raws = self.histories[user] if history is None else history
        records = encoder.records([] if degraded else raws)
        asked = Request(candidates, records, profile or {}, context or {}, columns=columns or {})
        batch, known = encoder.encode(asked)
        logits = run(session(self.bundle.graph.read_bytes()), batch)
        scored = Scored(
            request_id=request,
            user_id=user,
            received=ts * 1000,
            model=schema.name,
            version=self.version,
            schema=schema.fingerprint,
            candidates=candidates,
            probability={"ctr": (1 / (1 + np.exp(-logits[:, 0].astype(float)))).tolist()},
            history=Snapshot.of(recent(records, schema.history_length), history),
            user=profile or {},
            context=context or {},
            columns=columns or {},
            rows=digests(batch, schema),
            unknown=np.flatnonzero(~known).tolist(),
            degraded=degraded,
        )
        self.entries.append(scored)
        return scored

    @staticmethod
    def _same(one: Raw, other: Raw) -> bool:
        return all(one.get(name) == other.get(name) for name in ("item_id", "ts", "action"))

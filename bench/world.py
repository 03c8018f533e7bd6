"""The service yardstick's world: items, users with histories, requests; the same for both sides."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
from redis import Redis

from bench.graph import SIZES, WORLD, Exported
from bench.load import post
from model.contract import bundle
from model.contract.encode import Encoder
from model.contract.ids import keys
from model.contract.repository import Repository
from service.load import Histories, write
from training.export import run, session

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

PREFIX = "din"
GOLDEN: list[dict[str, Any]] = [
    {"candidates": ["1"], "history": []},
    {"candidates": ["1", "2", "none"], "history": [{"item_id": str(n), "ts": n} for n in range(9)]},
]


@dataclass(frozen=True)
class Mix:
    """Histories' lengths: lognormal by median and 99th percentile, from 1 to ``longest``."""

    name: str
    median: int
    p99: int
    longest: int

    def __str__(self) -> str:
        if self.median == self.p99:
            return f"{self.median}"
        return f"median {self.median}, p99 {self.p99}"

    def lengths(self, users: int) -> Ints:
        """A length per user, rising: the distribution's own quantiles, so none is left to luck."""
        normal = NormalDist()
        sigma = np.log(self.p99 / self.median) / normal.inv_cdf(0.99)
        at = [normal.inv_cdf((n + 0.5) / users) for n in range(users)]
        drawn: Floats = np.rint(self.median * np.exp(sigma * np.array(at)))
        return drawn.clip(1, self.longest).astype(np.int64)


MIXED = Mix("mixed", 20, 98, 100)
LONG = Mix("long", 20, 400, 400)
FIXED = Mix("fixed", 50, 50, 100)
MIXES = (MIXED, LONG, FIXED)


@dataclass(frozen=True)
class Asked:
    """One request: who asks and for which items. User n of a mix has the n-th shortest history."""

    user: str
    items: tuple[str, ...]

    def rows(self, **more: Any) -> bytes:
        """An object per candidate: what both sides take."""
        candidates = [{"item_id": item} for item in self.items]
        return _post("/score", {"user_id": self.user, "candidates": candidates, **more})

    def columns(self) -> bytes:
        return _post("/score/columns", {"user_id": self.user, "item_ids": self.items})


def _post(path: str, body: dict[str, Any]) -> bytes:
    return post(path, json.dumps(body).encode(), "application/json")


def draw(mix: Mix, users: int, candidates: int, count: int, seed: int) -> list[Asked]:
    """Requests. Their users are drawn one from each of ``count`` equal parts of all users in the
    order of their histories' lengths, and shuffled: any ``count`` has the lengths of the mix."""
    generator = np.random.default_rng(seed)
    drawn = ((np.arange(count) + generator.random(count)) / count * users).astype(np.int64)
    generator.shuffle(drawn)
    found = []
    for user in drawn.tolist():
        items = generator.choice(SIZES["item_id"], candidates, replace=False)
        found.append(Asked(f"{mix.name}-{user}", tuple(map(str, items.tolist()))))
    return found


def publish(root: Path, exported: Exported) -> None:
    """Ours into a repository at ``root``."""
    schema, encoder = exported.encoder.schema, exported.encoder
    batch = bundle.encode_golden(encoder, GOLDEN)
    golden = bundle.Golden(GOLDEN, batch, run(session(exported.ours), batch))
    Repository(root, schema.name).publish(
        lambda folder: bundle.write(
            folder,
            schema_text=WORLD.format(longest=schema.history_length),
            encoder=encoder,
            graph=exported.ours,
            golden=golden,
            metrics={},
            lineage={},
        )
    )


def publish_reference(folder: Path, exported: Exported) -> None:
    """REF's graph and dictionary."""
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(exported.reference)
    texts = [str(n) for n in range(SIZES["item_id"])]
    rows, _ = exported.encoder.items(keys(texts))
    (folder / "items.json").write_text(json.dumps(dict(zip(texts, rows.tolist(), strict=True))))


def store(redis_url: str, encoder: Encoder, users: int) -> None:
    """The histories of all mixes' users, in our form and in REF's."""
    generator = np.random.default_rng(0)
    texts = [str(n) for n in range(SIZES["item_id"])]
    known = keys(texts)
    with Redis.from_url(redis_url) as redis:
        for mix in MIXES:
            lengths = mix.lengths(users)
            ends = np.cumsum(lengths)
            items = generator.integers(0, len(texts), ends[-1])
            names = [f"{mix.name}-{n}" for n in range(users)]
            packed = encoder.codec.pack({"ts": np.arange(ends[-1]), "item_id": known[items]})
            write(Histories(names, ends, packed, {}), encoder.schema, redis_url, prefix=PREFIX)
            pipeline = redis.pipeline(transaction=False)
            for name, end, length in zip(names, ends.tolist(), lengths.tolist(), strict=True):
                history = [texts[at] for at in items[end - length : end].tolist()]
                pipeline.set(f"ref:{name}", json.dumps(history))
            pipeline.execute()

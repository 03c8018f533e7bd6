"""A small model that uses every kind of field, and the bundle of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from model.contract import bundle
from model.contract.catalogue import Catalogue
from model.contract.encode import Encoder, table_of
from model.contract.ids import Vocabulary
from model.contract.schema import Schema

TEXT = """
name = "shop"
history_length = 4

[[task]]
name = "click"
[[task]]
name = "buy"

[[user]]
name = "gender"
[[user]]
name = "age"
kind = "number"
boundaries = [18, 30.5, 65]
[[user]]
name = "likes"
kind = "tags"
table = "genre"
max_values = 2

[[item]]
name = "item_id"
[[item]]
name = "genre"
kind = "tags"
max_values = 3
[[item]]
name = "brand"
buckets = 10
[[item]]
name = "price"
kind = "number"
boundaries = [0.0]

[[behaviour]]
name = "rating"
kind = "number"
boundaries = [3, 4]
[[behaviour]]
name = "action"

[[ad]]
name = "campaign"
buckets = 7
[[ad]]
name = "bid"
kind = "number"
boundaries = [1]

[[context]]
name = "hour"
"""

ITEMS = ["i0", "i1", "i2", "9007199254740992", "9007199254740993", "é"]
LEARNT = {
    "gender": ["f", "m"],
    "genre": ["Animation", "Comedy", "Drama", "Noir"],
    "item_id": ITEMS[:-1],
    "action": ["view", "buy"],
    "hour": [str(hour) for hour in range(24)],
}

REQUESTS = [
    {
        "candidates": ["i0", "never seen", "9007199254740993"],
        "given": [{"campaign": "c1", "bid": 0.5}, {"genre": ["Noir"], "price": -1}, {}],
        "history": [
            {"item_id": "i1", "ts": 7, "rating": 5, "action": "view"},
            {"item_id": "gone", "ts": 3, "rating": None},
        ],
        "user": {"gender": "f", "age": 30.5, "likes": ["Drama", "Noir", "Comedy"]},
        "context": {"hour": 23},
    },
    {"candidates": ["é"]},
]


def _encoder() -> Encoder:
    schema = Schema.parse(TEXT)
    learnt = {
        name: Vocabulary.learn(texts, np.ones(len(texts), np.int64), 1)
        for name, texts in LEARNT.items()
    }
    tables = {name: table_of(field, learnt.get(name)) for name, field in schema.tables.items()}
    columns = {
        "item_id": ITEMS,
        "genre": [["Drama"], ["Comedy", "Noir"], None, [], ["Drama"] * 9, ["?"]],
        "brand": ["acme", None, "b", "c", "d", "acme"],
        "price": [0.0, -0.5, None, 1e300, -1e300, 3],
    }
    empty = Catalogue.build([], np.zeros((0, schema.width("item")), np.int64))
    first = Encoder(schema, tables, empty)
    rows = [first.column(field, columns[field.name]) for field in schema.item]
    return Encoder(schema, tables, Catalogue.build(ITEMS, np.concatenate(rows, axis=1)))


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    return _encoder()


Fill = Callable[[Path], None]


@pytest.fixture(scope="session")
def fill(encoder: Encoder) -> Fill:
    """Writes a whole bundle into an empty folder."""
    batch = bundle.encode_golden(encoder, REQUESTS)
    logits = np.linspace(-2, 2, batch.candidates * 2, dtype=np.float32).reshape(-1, 2)

    def write(folder: Path) -> None:
        bundle.write(
            folder,
            schema_text=TEXT,
            encoder=encoder,
            graph=b"a graph",
            golden=bundle.Golden(REQUESTS, batch, logits),
            metrics={"gauc": 0.75},
            lineage={"seed": 1},
        )

    return write


@pytest.fixture
def written(fill: Fill, tmp_path: Path) -> Path:
    """The folder of a whole bundle."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    fill(folder)
    return folder


@pytest.fixture(scope="session")
def seal() -> Fill:
    """Makes the manifest of a changed bundle agree with its files, as a faulty writer would."""

    def reseal(folder: Path) -> None:
        path = folder / bundle.MANIFEST
        manifest = json.loads(path.read_bytes())
        del manifest["sha256"]
        manifest["files"] = {
            each.relative_to(folder).as_posix(): {
                "sha256": hashlib.sha256(each.read_bytes()).hexdigest(),
                "bytes": each.stat().st_size,
            }
            for each in folder.rglob("*")
            if each.is_file() and each != path
        }
        path.write_bytes(bundle.sealed(manifest))

    return reseal

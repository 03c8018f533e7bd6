"""A small shop's own logs, with a field of every group and kind and everything that may be missing.

Events are shuffled and many share a time; some users and items are in no table; ids are big
numbers and accented text.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

SCHEMA = """# A shop.
name = "shop"
history_length = 4
session_gap = 1
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
min_count = 3
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
boundaries = [0.0, 5]
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
[[context]]
name = "shelf"
table = "genre"
"""
BIG = 2**53
USERS, ITEMS, EVENTS = 20, 30, 900


def write(folder: Path) -> Path:
    """events.csv, items.csv, users.csv and schema.toml in ``folder``; the schema's path."""
    draw = np.random.default_rng(0)
    genres = ["noir", "drama", "caf\u00e9", "sport", "kids"]
    item_ids = [f"{BIG + n}" if n % 2 else f"\u00e9-{n}" for n in range(ITEMS)]

    def maybe(value: object) -> str:
        return "" if draw.random() < 0.15 else str(value)

    def tags() -> str:
        return "|".join(draw.choice(genres, int(draw.integers(0, 5)), replace=False))

    def row(at: int) -> str:
        shown = draw.random() < 0.8
        click = int(draw.random() < 0.4)
        labels = f"{click},{int(draw.random() < 0.3)}" if shown else ","
        behaviour = "true" if not shown or click else "false"
        user = int(draw.integers(USERS - 1)) if at else USERS - 1  # the last one has one event
        values = (
            user,
            item_ids[int(draw.integers(ITEMS))],
            int(draw.integers(60)),
            labels,
            behaviour,
            maybe(draw.integers(1, 6)),
            maybe(draw.choice(["view", "cart"])),
            maybe(draw.integers(4)),
            maybe(round(draw.random() * 2, 2)),
            maybe(draw.integers(24)),
            maybe(draw.choice(genres)),
        )
        return ",".join(map(str, values))

    names = "user_id,item_id,ts,click,buy,behaviour,rating,action,campaign,bid,hour,shelf"
    tables = {
        "events": [names, *(row(at) for at in range(EVENTS))],
        "items": [
            "item_id,genre,brand,price",
            *(
                f"{item},{tags()},{maybe(draw.choice(['acme', 'ajax']))},{maybe(draw.normal() * 5)}"
                for item in item_ids[2:]
            ),
        ],
        "users": [
            "user_id,gender,age,likes",
            *(
                f"{user},{maybe(draw.choice(['f', 'm']))},{maybe(draw.integers(10, 80))},{tags()}"
                for user in range(2, USERS)
            ),
        ],
    }
    for name, lines in tables.items():
        text = "".join(f"{line}\n" for line in lines)
        (folder / f"{name}.csv").write_text(text, encoding="utf-8")
    (folder / "schema.toml").write_text(SCHEMA, encoding="utf-8")
    return folder / "schema.toml"

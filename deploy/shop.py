"""The shop: real users, items and contexts of the prepared logs, to make requests of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

GOOD_HISTORY = 30


@dataclass(frozen=True)
class Shop:
    """The prepared logs, as far as requests and their display need them."""

    behaviours: pl.DataFrame  # user_id, item_id
    counts: pl.DataFrame  # user_id, len: test users and how long their histories are
    items: pl.DataFrame
    context: dict[str, Any]
    titles: dict[str, str]

    @classmethod
    def open(cls, data: Path, schema: dict[str, Any], titles: dict[str, str]) -> Shop:
        events = pl.read_parquet(data / "events.parquet")
        test = events.filter(pl.col("split") == "test")
        behaviours = events.filter(pl.col("behaviour")).select("user_id", "item_id")
        tested = behaviours.join(test.select("user_id").unique(), on="user_id", how="semi")
        first = test.head(1).to_dicts()[0]
        return cls(
            behaviours,
            tested.group_by("user_id").len().sort("user_id"),
            pl.read_parquet(data / "items.parquet"),
            {each["name"]: first[each["name"]] for each in schema.get("context", [])},
            titles,
        )

    def request(self, count: int) -> dict[str, Any]:
        """A body of `POST /score`: a test user with a good history, ``count`` unseen items."""
        good = self.counts.filter(pl.col("len") >= GOOD_HISTORY)
        user = (good if len(good) else self.counts.sort("len").tail(1))["user_id"][0]
        body = {"user_id": user, "candidates": self._unseen(user, count), "explain": 3}
        return {**body, "context": self.context} if self.context else body

    def _unseen(self, user: str, count: int) -> list[str]:
        """Popular items that a user has no behaviour with; half like the latest behaviours."""
        own = self.behaviours.filter(pl.col("user_id") == user)
        unseen = self.behaviours.join(own, on="item_id", how="anti").group_by("item_id").len()
        ranked = unseen.sort("len", "item_id", descending=True)["item_id"].to_list()
        recent = set(own["item_id"].to_list()[-10:])
        kinds = {row["item_id"]: _kinds(row) for row in self.items.iter_rows(named=True)}
        liked = set().union(*(kinds.get(item, frozenset()) for item in recent))
        alike = [item for item in ranked if kinds.get(item, frozenset()) & liked][: 3 * count]
        generator = np.random.default_rng(0)
        chosen = generator.permutation(alike)[: count // 2].tolist()
        others = [item for item in ranked[: 20 * count] if item not in chosen]
        chosen += generator.permutation(others)[: count - len(chosen)].tolist()
        return [str(item) for item in generator.permutation(chosen)]

    def labels(self) -> dict[str, str]:
        """What to call an item: its title or id, and what else is known of it."""
        return {row["item_id"]: self._label(row) for row in self.items.iter_rows(named=True)}

    def _label(self, row: dict[str, Any]) -> str:
        item = row["item_id"]
        known = [value for name, value in row.items() if name != "item_id" and value is not None]
        text = ", ".join("/".join(value) if isinstance(value, list) else value for value in known)
        if item in self.titles:
            return f"{self.titles[item]} [{text}]"
        return f"item {item} [category {text}]" if text else f"item {item}"


def _kinds(row: dict[str, Any]) -> frozenset[tuple[str, Any]]:
    """The values of an item's fields: its genres, its category."""
    known = [(name, value) for name, value in row.items() if name != "item_id"]
    lists = [(name, value if isinstance(value, list) else [value]) for name, value in known]
    return frozenset((name, one) for name, values in lists for one in values if one is not None)

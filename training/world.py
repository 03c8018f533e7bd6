"""The synthetic world: clicks drawn from a known probability that the click history explains.

With ``c`` the category of a candidate item ``i``, shown to a user at position ``p`` (0 to 9):

    P(click) = 0.95^p * sigmoid(bias + quality_i + strength * f(h))
    h = sum over the user's last 50 clicks j on earlier pages of decay^age_j * [category_j = c]
    f(h) = tanh(h)

``age_j`` is 0 for the latest click and rises by one per click; the clicks of one page follow its
positions. So the probability needs nothing but what the logs show: the clicks before the page, the
item and the position. Histories mix many categories, so they have to be looked at per candidate.

Users: each has ``interests`` categories that differ, with strengths from a Dirichlet distribution,
and one of them is active at a time: it stays for the next page with probability 0.9, else it is
drawn anew by strength, so clicks come in bursts. Each history starts with ``seed_clicks`` clicks in
the active interest, which are behaviours and no impressions. Items: the categories have about the
same number of items; within one, the chance of the r-th item follows Zipf's law, 1 / r^0.8, and
quality is normal with deviation 0.2. A page shows 10 items that differ: each is from the active
interest with probability 0.25, from any of the user's interests (by strength) with 0.15, else from
a category drawn uniformly. The last 10 % of each user's pages are test, the 10 % before validation.

With ``conversions`` there is a second task on the very same clicks: items have a price level, users
a budget level (0 to 4, drawn uniformly, both known fields), and a click is followed by a conversion
the more likely the closer the two are and the stronger the interest is:

    P(conversion | click) = sigmoid(2 f(h) - |price_i - budget_u|)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from terminal.progress import Update, quiet
from training.logs import Logs

SCHEMAS = Path(__file__).with_name("schemas")
PAGE = 10
WINDOW = 50
EXAMINATION = 0.95
STAY = 0.9
ACTIVE, OWN = 0.25, 0.15
ZIPF = 0.8
QUALITY = 0.2
LEVELS = 5
PULL = 2.0

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """The size and the constants of a world; the same world gives the same logs."""

    users: int = 2000
    items: int = 1000
    categories: int = 100
    interests: int = 10
    seed_clicks: int = 20
    bias: float = -2.5
    strength: float = 2.75
    decay: float = 0.97
    seed: int = 0
    conversions: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.interests <= self.categories <= self.items:
            raise ValueError("expected 1 <= interests <= categories <= items")
        if self.items < PAGE or self.users < 1 or self.seed_clicks < 0:
            raise ValueError("expected 10 items, a user and no negative seed_clicks")

    def logs(self, impressions_per_user: int = 200, update: Update = quiet) -> Logs:
        """Logs of whole pages of 10 impressions, so ``impressions_per_user`` is rounded up.

        ts counts a user's seed clicks, then its pages. ``probability`` is P(click) as above,
        ``conversion.probability`` that of a click with a conversion. Raises `ValueError` when there
        is no page for each split.
        """
        pages = -(-impressions_per_user // PAGE)
        if pages < 3:
            raise ValueError("expected more than 20 impressions per user, a page for each split")
        generator = np.random.default_rng(self.seed)
        shelf = Shelf.stock(self, generator)
        taste = Taste.of(self, generator)
        purse = Purse.fill(self) if self.conversions else None
        clicked = np.full((self.users, WINDOW), -1, np.int64)  # categories, latest last
        weight = self.decay ** np.arange(WINDOW - 1, -1, -1.0)
        examined = EXAMINATION ** np.arange(PAGE)
        parts = []
        active = taste.draw(generator)
        drawn, total = 0, self.users * (self.seed_clicks + pages * PAGE)
        for ts in range(self.seed_clicks + pages):
            update("draw events", drawn, total, {})
            active = np.where(generator.random(self.users) < STAY, active, taste.draw(generator))
            interest = taste.categories[np.arange(self.users), active]
            if ts < self.seed_clicks:
                item = shelf.draw(interest[:, None], generator)  # (U, 1)
                drawn += item.size
                push(clicked, shelf.category[item[:, 0]], np.ones(self.users, bool))
                parts.append(_events(ts, item, {}))
                continue
            item = page(self, shelf, taste, interest, generator)  # (U, PAGE)
            drawn += item.size
            category = shelf.category[item]
            match = (clicked[:, None, :] == category[:, :, None]) @ weight  # (U, PAGE)
            drawn_to = np.tanh(match)
            logit = self.bias + shelf.quality[item] + self.strength * drawn_to
            probability = examined / (1 + np.exp(-logit))
            click = generator.random(item.shape) < probability
            for position in range(PAGE):
                push(clicked, category[:, position], click[:, position])
            outcome = {"ctr": click, "probability": probability}
            if purse is not None:
                chance = purse.chance(item, drawn_to)
                bought = click & (purse.generator.random(item.shape) < chance)
                outcome |= {"conversion": bought, "conversion.probability": probability * chance}
            parts.append(_events(ts, item, outcome))
        update("draw events", drawn, total, {})
        update("arrange", 0, 0, {})
        events = pl.concat(parts, how="diagonal").with_columns(_split(self.seed_clicks, pages))
        items = pl.DataFrame({"item_id": np.arange(self.items), "category": shelf.category})
        users = pl.DataFrame({"user_id": np.arange(self.users)})
        if purse is not None:
            items = items.with_columns(pl.Series("price", purse.price))
            users = users.with_columns(pl.Series("budget", purse.budget))
        schema = SCHEMAS / f"synthetic{'-conversions' if self.conversions else ''}.toml"
        return Logs.build(schema, events, items.cast(pl.String), users.cast(pl.String))


@dataclass(frozen=True, eq=False)
class Shelf:
    """The items: category and quality of each, and the chances within each category."""

    category: Ints  # (items,), rising
    quality: Floats  # (items,)
    total: Floats  # (items + 1,) running sum of the chances; each category's add up to 1

    @classmethod
    def stock(cls, world: World, generator: np.random.Generator) -> Shelf:
        category = np.sort(np.arange(world.items) % world.categories)
        first = np.searchsorted(category, np.arange(world.categories))
        chance = 1 / (np.arange(world.items) - first[category] + 1) ** ZIPF
        chance /= np.bincount(category, chance)[category]
        total = np.concatenate([[0.0], np.cumsum(chance)])
        return cls(category, generator.normal(0, QUALITY, world.items), total)

    def draw(self, category: Ints, generator: np.random.Generator) -> Ints:
        """One item of each category, by its chance; the same shape."""
        first = np.searchsorted(self.category, category)
        stop = np.searchsorted(self.category, category, side="right")
        low, high = self.total[first], self.total[stop]
        place = low + generator.random(category.shape) * (high - low)
        return np.clip(np.searchsorted(self.total, place, side="right") - 1, first, stop - 1)


@dataclass(frozen=True, eq=False)
class Taste:
    """The users' interests and their strengths."""

    categories: Ints  # (U, interests)
    total: Floats  # (U, interests) running sum of the strengths

    @classmethod
    def of(cls, world: World, generator: np.random.Generator) -> Taste:
        order = generator.random((world.users, world.categories)).argsort(axis=1)
        strength = generator.dirichlet(np.full(world.interests, 4.0), world.users)
        return cls(order[:, : world.interests], strength.cumsum(axis=1))

    def draw(self, generator: np.random.Generator) -> Ints:
        """One interest of each user by strength: its column, (U,)."""
        place = generator.random((len(self.total), 1))
        column: Ints = np.count_nonzero(place >= self.total[:, :-1], axis=1).astype(np.int64)
        return column


@dataclass(frozen=True, eq=False)
class Purse:
    """What conversions depend on beside the interest; drawn apart, so that clicks stay the same."""

    price: Ints  # (items,)
    budget: Ints  # (U,)
    generator: np.random.Generator

    @classmethod
    def fill(cls, world: World) -> Purse:
        generator = np.random.default_rng((world.seed, 1))
        price, budget = (generator.integers(LEVELS, size=n) for n in (world.items, world.users))
        return cls(price, budget, generator)

    def chance(self, item: Ints, drawn_to: Floats) -> Floats:
        """P(conversion | click) of each user's items, (U, PAGE); ``drawn_to`` is f(h)."""
        logit = PULL * drawn_to - np.abs(self.price[item] - self.budget[:, None])
        chance: Floats = 1 / (1 + np.exp(-logit))
        return chance


def page(
    world: World,
    shelf: Shelf,
    taste: Taste,
    interest: Ints,
    generator: np.random.Generator,
    size: int = PAGE,
) -> Ints:
    """``size`` items per user, each once, (U, size). ``interest`` (U,): the active categories."""
    shape = len(interest), size
    kind = generator.random(shape)
    own = np.stack([taste.draw(generator) for _ in range(size)], axis=1)
    category = generator.integers(world.categories, size=shape)
    own = np.take_along_axis(taste.categories, own, axis=1)
    category = np.where(kind < ACTIVE + OWN, own, category)
    category = np.where(kind < ACTIVE, interest[:, None], category)
    item = shelf.draw(category, generator)
    while (again := _repeats(item)).any():
        anywhere = generator.integers(world.categories, size=int(again.sum()))
        item[again] = shelf.draw(anywhere, generator)
    return item


def push(clicked: Ints, category: Ints, who: NDArray[np.bool_]) -> None:
    """Put a click's category behind those of each user in ``who``; clicked (U, WINDOW)."""
    clicked[who] = np.column_stack([clicked[who, 1:], category[who]])


def _repeats(item: Ints) -> NDArray[np.bool_]:
    """Where a row has an item that it also has further left, (U, PAGE)."""
    order = item.argsort(axis=1, kind="stable")
    ranked = np.take_along_axis(item, order, axis=1)
    same = np.zeros(item.shape, bool)
    same[:, 1:] = ranked[:, 1:] == ranked[:, :-1]
    again = np.zeros(item.shape, bool)
    np.put_along_axis(again, order, same, axis=1)
    return again


def _events(ts: int, item: Ints, outcome: Mapping[str, NDArray[Any]]) -> pl.DataFrame:
    """The events of all users at one time, with labels and probabilities (U, shown); seed clicks
    where there is no ``outcome``."""
    users, shown = item.shape
    columns: dict[str, NDArray[Any]] = {
        "user_id": np.repeat(np.arange(users), shown),
        "item_id": item.ravel(),
        "ts": np.full(item.size, ts),
        "behaviour": outcome.get("ctr", np.ones(item.shape, bool)).ravel(),
        **{name: values.ravel() for name, values in outcome.items()},
    }
    if outcome:
        columns["position"] = np.tile(np.arange(shown), users)
    labels = [name for name in ("ctr", "conversion") if name in outcome]
    ids = [name for name in ("user_id", "item_id", "position") if name in columns]
    frame = pl.DataFrame(columns)
    return frame.with_columns(pl.col(ids).cast(pl.String), pl.col(labels).cast(pl.Int8))


def _split(seed_clicks: int, pages: int) -> pl.Expr:
    page = pl.col("ts") - seed_clicks
    return (
        pl.when(page < 0)
        .then(None)
        .when(page >= pages - max(pages // 10, 1))
        .then(pl.lit("test"))
        .when(page >= pages - 2 * max(pages // 10, 1))
        .then(pl.lit("validation"))
        .otherwise(pl.lit("train"))
        .alias("split")
    )

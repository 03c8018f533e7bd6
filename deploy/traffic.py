"""The synthetic world of `training.world` as live traffic, whose taste may shift.

Each visit a user is offered candidates, of which a page is shown; what is clicked follows the same
formula as in the logs, from the clicks of earlier visits, with one term more in the logit:
``fashion[category]``. It is 0 until taste shifts; then some categories come into fashion, and as
many go out of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from training.logs import Logs
from training.world import EXAMINATION, STAY, WINDOW, Floats, Ints, Shelf, Taste, World, page, push


@dataclass(eq=False)
class Traffic:
    """Where the world stands: what every user clicked so far, and is interested in."""

    world: World
    shelf: Shelf
    taste: Taste
    clicked: Ints  # (U, WINDOW) categories, the latest last; -1 where there is none
    active: Ints  # (U,) columns of the taste
    fashion: Floats  # (categories,)
    generator: np.random.Generator = field(repr=False)

    @classmethod
    def after(cls, world: World, logs: Logs, seed: int) -> Traffic:
        """The world as its own logs left it."""
        generator = np.random.default_rng(world.seed)
        shelf = Shelf.stock(world, generator)  # the first that `World.logs` draws, so the same
        taste = Taste.of(world, generator)
        generator = np.random.default_rng(seed)
        clicked = np.full((world.users, WINDOW), -1, np.int64)
        events = logs.events
        behaviours = events.filter(events["behaviour"]).sort("ts", maintain_order=True)
        users = behaviours["user_id"].cast(int).to_numpy()
        categories = shelf.category[behaviours["item_id"].cast(int).to_numpy()]
        for user in range(world.users):
            own = categories[users == user][-WINDOW:]
            clicked[user, WINDOW - len(own) :] = own
        fashion = np.zeros(world.categories)
        return cls(world, shelf, taste, clicked, taste.draw(generator), fashion, generator)

    def shift(self, share: float, size: float) -> None:
        """From now on this share of the categories, drawn at random, is in fashion by ``size`` of
        the logit, and as many others are out of it."""
        count = round(share * self.world.categories)
        moved = self.generator.permutation(self.world.categories)[: 2 * count]
        self.fashion = np.zeros(self.world.categories)
        self.fashion[moved[:count]], self.fashion[moved[count:]] = size, -size

    def offer(self, candidates: int) -> Ints:
        """Candidates of the next visit of every user, each once, (U, candidates)."""
        fresh = self.taste.draw(self.generator)
        stays = self.generator.random(self.world.users) < STAY
        self.active = np.where(stays, self.active, fresh)
        interest = self.taste.categories[np.arange(self.world.users), self.active]
        return page(self.world, self.shelf, self.taste, interest, self.generator, candidates)

    def probability(self, users: Ints, items: Ints) -> Floats:
        """P(click) of each item, were it shown first: users (V,), items (V, N) -> (V, N)."""
        weight = self.world.decay ** np.arange(WINDOW - 1, -1, -1.0)
        category = self.shelf.category[items]
        match = (self.clicked[users][:, None, :] == category[:, :, None]) @ weight
        liked = self.shelf.quality[items] + self.fashion[category]
        logit = self.world.bias + liked + self.world.strength * np.tanh(match)
        found: Floats = 1 / (1 + np.exp(-logit))
        return found

    def click(self, users: Ints, shown: Ints) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        """What is clicked of the pages shown (V, PAGE), top first; the world goes on from there."""
        examined = EXAMINATION ** np.arange(shown.shape[1])
        probability = self.probability(users, shown) * examined
        click = self.generator.random(shown.shape) < probability
        recent = self.clicked[users]
        for place in range(shown.shape[1]):
            push(recent, self.shelf.category[shown[:, place]], click[:, place])
        self.clicked[users] = recent
        return click

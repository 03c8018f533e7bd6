"""The dataset: canonical logs as encoded arrays, point-in-time correct, and the batches they give.

An impression sees its user's behaviours with a strictly smaller ts, the most recent
``history_length`` of them; where the logs say what its score looked at (``seen_length``,
``seen_newest``), no more than that. Behaviours are stored once, user by user and oldest first; an
impression's history is the range ``start:stop`` of that array. A batch holds *blocks*: up to
``block`` successive impressions of one user over one shared slab of behaviours, so that a
behaviour is embedded once for all the impressions that see it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from model.contract.batch import Batch
from model.contract.catalogue import Catalogue
from model.contract.encode import Encoder, id_text, table_of
from model.contract.ids import PAD, Rows, Vocabulary, keys
from model.contract.schema import Group, Schema
from training.chunks import AnyLogs
from training.logs import Logs
from training.vocabulary import Seen, learn

Ints = npt.NDArray[np.int64]
Rows32 = npt.NDArray[np.int32]
Array = npt.NDArray[Any]

IMPRESSIONS = ("user", "item", "ad", "context", "start", "stop", "label", "event")


def learn_encoder(logs: AnyLogs, seen: Mapping[str, Seen] | None = None) -> Encoder:
    """Vocabularies and catalogue of a schema: of the ids that were ``seen``, by default those that
    `training.vocabulary.learn` finds in the training part of the logs.
    """
    schema, seen = logs.schema, learn(logs) if seen is None else seen
    tables = {
        name: table_of(field, Vocabulary(seen[name].keys) if name in seen else None)
        for name, field in schema.tables.items()
    }
    nothing = Catalogue.build([], np.zeros((0, schema.width("item")), np.int64))
    encoder = Encoder(schema, tables, nothing)
    rows = encode_frame(encoder, "item", logs.items)
    catalogue = Catalogue.build(logs.items["item_id"].to_list(), rows)
    return Encoder(schema, tables, catalogue)


def encode_frame(encoder: Encoder, group: Group, frame: pl.DataFrame) -> Rows:
    """Rows [n, F_group] of a frame with one column per field of the group.

    Each distinct value is encoded once, by the code that encodes requests.
    """
    columns = []
    for field in encoder.schema.group(group):
        values = frame[field.name]
        distinct = values.unique()
        rows = encoder.column(field, distinct.to_list())
        order = pl.DataFrame({"v": distinct}).with_row_index("at")
        found = pl.DataFrame({"v": values}).join(
            order, on="v", how="left", nulls_equal=True, maintain_order="left"
        )
        columns.append(rows[found["at"].to_numpy()])
    return np.concatenate(columns, 1) if columns else np.zeros((len(frame), 0), np.int64)


@dataclass(frozen=True)
class Dataset:
    """Encoded logs. I impressions sorted by (user, ts), B behaviours likewise, S users."""

    encoder: Encoder
    behaviours: Rows32  # (B, F_item + F_behaviour)
    ts: Ints  # (B,) when each behaviour happened
    users: Rows32  # (S, F_user)
    user: Ints  # (I,) row of users
    item: Rows32  # (I, F_item)
    ad: Rows32  # (I, F_ad)
    context: Rows32  # (I, F_context)
    start: Ints  # (I,) first behaviour that the impression sees
    stop: Ints  # (I,) one after the last
    label: npt.NDArray[np.float32]  # (I, tasks)
    event: Ints  # (I,) row of the impression in the sorted events

    def __len__(self) -> int:
        return len(self.user)

    @property
    def schema(self) -> Schema:
        return self.encoder.schema

    @property
    def lengths(self) -> tuple[int, ...]:
        """Impressions of each part: what is in memory is one (see `training.encoded`)."""
        return (len(self),)

    @property
    def ones(self) -> tuple[int, ...]:
        """How many impressions have the label 1, of each task."""
        return tuple(int(count) for count in self.label.sum(0, np.float64))

    def parts(self, order: Sequence[int]) -> Iterator[Dataset]:
        """The parts by their numbers."""
        return (self for _ in order)

    def take(self, at: npt.NDArray[np.bool_] | Ints) -> Dataset:
        """Some of the impressions, over the same behaviours."""
        return replace(self, **{name: getattr(self, name)[at] for name in IMPRESSIONS})

    def blocks(self, block: int) -> Ints:
        """First impression of each block [blocks + 1], at most ``block`` long.

        A block is of one user, neither start nor stop falls in it, and its slab has no behaviour
        that none of its impressions sees.
        """
        fresh = np.diff(self.user, prepend=-1) != 0
        fresh[1:] |= (self.start[1:] > self.stop[:-1]) | self._falls()
        change = np.flatnonzero(fresh)
        within = np.arange(len(self)) - np.repeat(change, np.diff(change, append=len(self)))
        return np.append(np.flatnonzero(within % block == 0), len(self))

    def plan(
        self, size: int, block: int, seed: int | Sequence[int] | None
    ) -> list[tuple[Ints, Ints]]:
        """The batches of one epoch, each as its blocks' begin and end, about ``size`` impressions.

        With a seed the blocks come in random order, so that a batch mixes size / block users.
        However they are ordered there are len(self) / size batches, rounded up.
        """
        edges = self.blocks(min(block, size))
        order = np.arange(len(edges) - 1)
        if seed is not None:
            np.random.default_rng(seed).shuffle(order)
        lengths = np.diff(edges)[order]
        group = (np.cumsum(lengths) - 1) // size
        parts = np.split(order, np.flatnonzero(np.diff(group)) + 1)
        return [(edges[part], edges[part + 1]) for part in parts]

    def occurrences(self) -> dict[str, npt.NDArray[np.float32]]:
        """n_j of the paper's regularisation: impressions in which each row of a table occurs.

        A row that an impression holds more than once counts once, as equation 4 needs:
        the sum over the samples of I(x_j != 0) / n_j is 1.
        """
        every, user = np.arange(len(self)), np.arange(len(self.users))
        alone = [every, every + 1]
        behaviour, *seen = self._seen()
        of_user = [np.searchsorted(self.user, user, side) for side in ("left", "right")]
        holders: list[tuple[Group, Rows32, list[Ints]]] = [
            ("item", self.behaviours[behaviour], seen),
            ("item", self.item, alone),
            ("user", self.users, of_user),
            ("ad", self.ad, alone),
            ("context", self.context, alone),
        ]
        held: dict[str, list[Array]] = {name: [] for name in self.encoder.tables}
        for group, rows, (first, last) in holders:
            for field in self.schema.group(group):
                for column in rows[:, self.schema.columns(group)[field.name]].T:
                    real = column != PAD
                    held[field.table].append(np.stack([column[real], first[real], last[real]]))
        return {
            name: _samples(parts, len(self), self.encoder.tables[name].size)
            for name, parts in held.items()
        }

    def _falls(self) -> npt.NDArray[np.bool_]:
        """Whether start or stop falls from one impression to the next [I - 1], as happens where
        their scores looked at parts of a history in another order."""
        return (np.diff(self.start) < 0) | (np.diff(self.stop) < 0)

    def _seen(self) -> tuple[Ints, Ints, Ints]:
        """Behaviours with the impressions first:last that see each, several times if need be."""
        if not len(self):
            return (np.zeros(0, np.int64),) * 3
        # In a run neither start nor stop falls, so those that see a behaviour follow one another.
        run = np.append(0, np.cumsum(self._falls()))
        edges = np.flatnonzero(np.diff(run, prepend=-1, append=-1))
        low, high = self.start[edges[:-1]], self.stop[edges[1:] - 1]
        of_run = np.repeat(np.arange(len(low)), high - low)
        behaviour = np.arange(len(of_run)) + np.repeat(
            low - np.cumsum(high - low) + high - low, high - low
        )
        line = len(self.behaviours) + 1  # each run has a stretch of the line to itself
        at = of_run * line + behaviour
        first, last = (
            np.searchsorted(run * line + edge, at, "right") for edge in (self.stop, self.start)
        )
        return behaviour, first, last

    def batch(self, begin: Ints, end: Ints) -> tuple[Batch, Ints]:
        """The batch of the blocks begin[i]:end[i], and which impressions it holds [C]."""
        owner = np.repeat(np.arange(len(begin)), end - begin)
        at = np.arange(len(owner)) + np.repeat(
            begin - (np.cumsum(end - begin) - (end - begin)), end - begin
        )
        first, last = self.start[begin], self.stop[end - 1]
        longest = int((last - first).max(initial=0))
        slab = first[:, None] + np.arange(longest)
        real = slab < last[:, None]
        history = np.zeros((*slab.shape, self.behaviours.shape[1]), np.int64)
        history[real] = self.behaviours[slab[real]]
        ts = np.zeros(slab.shape, np.int64)
        ts[real] = self.ts[slab[real]]
        batch = Batch(
            history=history,
            ts=ts,
            user=self.users[self.user[begin]].astype(np.int64),
            item=self.item[at].astype(np.int64),
            ad=self.ad[at].astype(np.int64),
            context=self.context[at].astype(np.int64),
            owner=owner,
            start=self.start[at] - first[owner],
            stop=self.stop[at] - first[owner],
        )
        return batch, at


def _samples(parts: Sequence[Array], samples: int, size: int) -> npt.NDArray[np.float32]:
    """How many samples hold each row [size]; parts [3, n] of row, first, last: first:last do."""
    row, first, last = np.concatenate([np.zeros((3, 0), np.int64), *parts], 1)
    line = row * (samples + 1)  # each row has a stretch of the line to itself
    order = np.argsort(line + first)
    row, first, last = row[order], (line + first)[order], (line + last)[order]
    reached = np.maximum.accumulate(np.append(0, last))[:-1]
    fresh = np.maximum(last - np.maximum(first, reached), 0)
    return np.bincount(row, weights=fresh, minlength=size).astype(np.float32)


def joined(parts: Sequence[Mapping[str, Dataset]]) -> dict[str, Dataset]:
    """The splits of several parts of the logs, of different users, as one; there is a part."""
    first, *others = parts
    if not others:
        return dict(first)
    every = [part["train"] for part in parts]  # all splits have the same behaviours and users
    behaviours = np.cumsum([0, *(len(each.behaviours) for each in every)])
    users = np.cumsum([0, *(len(each.users) for each in every)])
    moved = {"user": users, "start": behaviours, "stop": behaviours}
    shared = {
        name: np.concatenate([getattr(each, name) for each in every])
        for name in ("behaviours", "ts", "users")
    }

    def of(split: str) -> Dataset:
        arrays: dict[str, Any] = dict(shared)
        for name in IMPRESSIONS:
            each = [getattr(part[split], name) for part in parts]
            if name in moved:
                each = [rows + before for rows, before in zip(each, moved[name], strict=False)]
            arrays[name] = np.concatenate(each)
        return replace(first[split], **arrays)

    return {split: of(split) for split in first}


def build(logs: Logs, encoder: Encoder) -> dict[str, Dataset]:
    """The train, validation and test impressions of the logs, encoded."""
    schema = logs.schema
    events = logs.events.sort("user_id", "ts", maintain_order=True)
    user_ids = events["user_id"].unique(maintain_order=True)
    users = pl.DataFrame({"user_id": user_ids}).join(
        logs.users, on="user_id", how="left", maintain_order="left"
    )
    user = (events["user_id"].rle_id()).to_numpy().astype(np.int64)
    ts, behaviour = events["ts"].to_numpy(), events["behaviour"].to_numpy()
    start, stop = visible(user, ts, behaviour, schema.history_length)
    if "seen_length" in events.columns:
        known = events["seen_length"].is_not_null().to_numpy()
        seen = events.filter(known).select("seen_length", pl.col("seen_newest").fill_null(0))
        length, newest = (column.to_numpy() for column in seen)
        length = np.minimum(length, schema.history_length)
        first, last = looked_at(user[behaviour], ts[behaviour], user[known], length, newest)
        stop[known] = np.minimum(stop[known], last)  # nothing at or after the impression's time
        start[known] = np.minimum(first, stop[known])
    item = _items(encoder, events["item_id"])
    extra = encode_frame(encoder, "behaviour", events.filter(pl.col("behaviour")))
    shown = events["split"].is_not_null().to_numpy()
    impressions = events.filter(pl.col("split").is_not_null())
    every = Dataset(
        encoder=encoder,
        behaviours=np.concatenate([item[behaviour], extra], 1).astype(np.int32),
        ts=ts[behaviour],
        users=encode_frame(encoder, "user", users).astype(np.int32),
        user=user[shown],
        item=item[shown].astype(np.int32),
        ad=encode_frame(encoder, "ad", impressions).astype(np.int32),
        context=encode_frame(encoder, "context", impressions).astype(np.int32),
        start=start[shown],
        stop=stop[shown],
        label=impressions.select(schema.tasks).to_numpy().astype(np.float32),
        event=np.flatnonzero(shown),
    )
    split = impressions["split"].to_numpy()
    return {name: every.take(split == name) for name in ("train", "validation", "test")}


def visible(
    user: Ints, ts: Ints, behaviour: npt.NDArray[np.bool_], length: int
) -> tuple[Ints, Ints]:
    """The behaviours each event may see: those of its user with a strictly smaller ts.

    Events [n] sorted by (user, ts). Returns start, stop [n] into the array of behaviours alone;
    stop - start <= ``length``.
    """
    if not len(user):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    happened = behaviour.astype(np.int64)
    before: Ints = np.cumsum(happened) - happened
    new_user = np.diff(user, prepend=user[0] - 1) != 0
    new_moment = new_user | (np.diff(ts, prepend=ts[0]) != 0)
    moment = np.maximum.accumulate(np.where(new_moment, np.arange(len(ts)), 0))
    first = np.maximum.accumulate(np.where(new_user, np.arange(len(ts)), 0))
    stop: Ints = before[moment]
    return np.maximum(before[first], stop - length), stop


def looked_at(user: Ints, ts: Ints, of_user: Ints, length: Ints, newest: Ints) -> tuple[Ints, Ints]:
    """The last ``length`` behaviours of a user up to the time ``newest``: start, stop [n].

    ``user`` and ``ts`` [B] are those of the behaviours, sorted.
    """
    times = np.unique(ts)
    line = len(times) + 1  # each user has a stretch of the line to itself
    end = of_user * line + np.searchsorted(times, newest, "right")
    stop = np.searchsorted(user * line + np.searchsorted(times, ts), end)
    return np.maximum(np.searchsorted(user, of_user), stop - length), stop


def _items(encoder: Encoder, item_ids: pl.Series) -> Rows:
    """Rows [n, F_item] of items by id, through the catalogue."""
    distinct = item_ids.unique()
    rows, _ = encoder.items(keys([id_text(text, "item_id") for text in distinct.to_list()]))
    order = pl.DataFrame({"v": distinct}).with_row_index("at")
    found = pl.DataFrame({"v": item_ids}).join(order, on="v", how="left", maintain_order="left")
    found_rows: Rows = rows[found["at"].to_numpy()]
    return found_rows

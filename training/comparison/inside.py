"""What networks learnt, to look at: attention weights of real users, and items on a plane."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from model.contract.batch import Batch
from model.contract.encode import Encoder, id_text
from model.contract.ids import FIRST, keys
from model.contract.schema import Field, Schema
from model.network import Network
from model.tensors import Tensors
from training.dataset import Dataset
from training.export import random_batch
from training.fit import Encoded

Ints = npt.NDArray[np.int64]
USERS, CANDIDATES, BEHAVIOURS = 3, 8, 20
ITEMS = 600


def attends(network: Network, encoder: Encoder) -> bool:
    """Whether a behaviour's weight depends on the candidate, which is what attention is."""
    length = min(8, encoder.schema.history_length)
    weight = _weights(network, random_batch(encoder, 1, length, 8, seed=0))
    if weight.shape != (8, length):
        return False
    return bool((weight.amax(0) - weight.amin(0)).max() > 1e-6 * weight.abs().max())


def attention(network: Network, encoded: Encoded) -> list[dict[str, Any]]:
    """Weights of some test users' behaviours for the last candidates that they were shown.

    Of each: candidates and their labels of the first task, behaviours, oldest first, and weights
    [candidates][behaviours]. All candidates look at the history as it was at the first of them;
    its newest 20 behaviours are told. Users have no name here.
    """
    test, logs = encoded.whole("test"), encoded.logs
    [whole] = logs.chunks()
    events = whole.events.sort("user_id", "ts", maintain_order=True)
    item_ids = events["item_id"]
    behaved = item_ids.filter(events["behaviour"])
    category = categories(logs.items, logs.schema)
    found = []
    for at in _chosen(test):
        batch = _page(test, at)
        weight = _weights(network, batch).numpy()
        first, last = int(test.start[at[0]]), int(test.stop[at[0]])
        shown = behaved[max(first, last - BEHAVIOURS) : last].to_list()
        found.append(
            {
                "candidates": _named(item_ids[test.event[at]].to_list(), category),
                "labels": test.label[at, 0].astype(int).tolist(),
                "behaviours": _named(shown, category),
                "weights": weight[:, -len(shown) :].astype(float).round(6).tolist(),
            }
        )
    return found


def item_map(network: Network, encoded: Encoded) -> dict[str, Any] | None:
    """The most frequent items of the training impressions on the two directions in which their
    embeddings differ most (principal components, by SVD); None where there are fewer than three
    items or two dimensions.

    Only the table of item_id is looked at: what was learnt of the item itself, without its
    category's own embedding.
    """
    logs, encoder = encoded.logs, encoded.encoder
    field = logs.schema.item[0]
    ids = logs.items["item_id"].to_list()
    of_item = encoder.items(keys([id_text(text, "item_id") for text in ids]))[0][:, 0]
    times = np.bincount(
        encoded.whole("train").item[:, 0], minlength=encoder.tables[field.table].size
    )
    rows, at = np.unique(of_item, return_index=True)  # hashed items may share a row
    known = (rows >= FIRST) & (times[rows] > 0)
    rows, at = rows[known], at[known]
    order = np.argsort(-times[rows], kind="stable")[:ITEMS]
    rows, at = rows[order], at[order]
    table = network.embeddings.weights()[field.table].detach().double().numpy()
    if len(rows) < 3 or table.shape[1] < 2:
        return None
    centred = table[rows] - table[rows].mean(0)
    left, scale, right = np.linalg.svd(centred, full_matrices=False)
    sign = np.sign(right[np.arange(2), np.abs(right[:2]).argmax(1)])  # SVD leaves it open
    place = left[:, :2] * scale[:2] * sign
    category = categories(logs.items, logs.schema)
    return {
        "items": [ids[i] for i in at],
        "x": place[:, 0].round(5).tolist(),
        "y": place[:, 1].round(5).tolist(),
        "category": [category.get(ids[i]) for i in at],
        "field": (named := category_field(logs.schema)) and named.name,
        "impressions": times[rows].tolist(),
        "explained": (scale[:2] ** 2 / max((scale**2).sum(), 1e-300)).tolist(),
    }


def category_field(schema: Schema) -> Field | None:
    """The first field of an item that puts it among others."""
    return next((f for f in schema.item[1:] if f.kind != "number"), None)


def categories(items: pl.DataFrame, schema: Schema) -> dict[str, str]:
    """The category (the first tag) of each item that has one, by its id."""
    field = category_field(schema)
    if field is None:
        return {}
    values = items[field.name]
    first = values.list.first() if field.kind == "tags" else values
    pairs = zip(items["item_id"].to_list(), first.to_list(), strict=True)
    return {item: value for item, value in pairs if value is not None}


def _named(ids: list[str], category: dict[str, str]) -> list[str]:
    return [f"{item} ({category[item]})" if item in category else item for item in ids]


def _chosen(test: Dataset) -> list[Ints]:
    """The last impressions of each of some users: those whose candidates differ in label, and who
    have many behaviours, where there are such."""
    edges = np.flatnonzero(np.diff(test.user, prepend=-1, append=-1))
    pages = []
    for low, high in pairwise(edges.tolist()):
        at = np.arange(max(low, high - CANDIDATES), high)
        seen = int(test.stop[at[0]] - test.start[at[0]])
        if seen:
            mixed = len(set(test.label[at, 0].tolist())) > 1
            pages.append((mixed and len(at) > 1, min(seen, BEHAVIOURS), at))
    order = np.random.default_rng(0).permutation(len(pages))
    ranked = sorted((pages[i] for i in order), key=lambda page: page[:2], reverse=True)
    return [at for _, _, at in ranked[:USERS]]


def _page(test: Dataset, at: Ints) -> Batch:
    """Candidates [n] of one user, all of which see the history of the first."""
    seen = slice(test.start[at[0]], test.stop[at[0]])
    history = test.behaviours[seen].astype(np.int64)
    zeros = np.zeros(len(at), np.int64)
    return Batch(
        history=history[None],
        ts=test.ts[seen][None],
        user=test.users[test.user[at[:1]]].astype(np.int64),
        item=test.item[at].astype(np.int64),
        ad=test.ad[at].astype(np.int64),
        context=test.context[at].astype(np.int64),
        owner=zeros,
        start=zeros,
        stop=zeros + len(history),
    )


def _weights(network: Network, batch: Batch) -> Tensor:
    """Weights (C, L)."""
    with torch.inference_mode():
        weight: Tensor = network.eval()(Tensors.of(batch, dense=True))[1]
    return weight

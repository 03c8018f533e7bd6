"""Small networks of every variant and random batches for them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch

from model.contract.batch import Batch
from model.contract.schema import GROUPS, Schema
from model.network import Network, NetworkConfig
from model.tensors import Tensors
from model.zoo import configure

SCHEMA = Schema.parse(
    """
name = "all"
history_length = 6
session_gap = 10
[[task]]
name = "click"
[[task]]
name = "buy"
[[user]]
name = "gender"
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
[[behaviour]]
name = "rating"
[[behaviour]]
name = "action"
[[ad]]
name = "campaign"
[[context]]
name = "hour"
"""
)
SIZES = dict.fromkeys(SCHEMA.tables, 9)
SMALL: dict[str, Any] = {"dim": 3, "head": [5]}
DIN = {
    f"din {weights} {kind} {'recency' if recency else ''} {'product' if product else ''}": {
        "attention": [4, 3],
        "weights": weights,
        "attention_activation": kind,
        "head_activation": kind,
        "recency": recency,
        "product": product,
    }
    for weights, (kind, recency, product) in itertools.product(
        ("raw", "softmax"),
        (
            ("sigmoid", False, False),
            ("dice", True, True),
            ("prelu", True, False),
            ("relu", False, True),
        ),
    )
}
BASE = {
    f"base {pooling} {'product' if product else ''}": {"pooling": pooling, "product": product}
    for pooling, product in itertools.product(("sum", "mean"), (False, True))
}
PLAIN = {"attention": [4], "attention_activation": "sigmoid", "recency": False, "product": False}
TASKS: dict[str, dict[str, Any]] = {
    "shared_bottom relu": {**PLAIN, "bottom": [4, 3], "head_activation": "relu"},
    "mmoe dice": {**PLAIN, "experts": 3, "expert": [4]},
    "mmoe prelu within": {**PLAIN, "head_activation": "prelu", "product_of": ["click"]},
    "ple dice": {**PLAIN, "layers": 3, "shared_experts": 1, "expert": [4, 3]},
    "ple prelu one layer": {**PLAIN, "layers": 1, "task_experts": 1, "head_activation": "prelu"},
    "esmm dice recency": {**PLAIN, "recency": True},
}
CROSSINGS: dict[str, dict[str, Any]] = {
    f"{model} {' '.join(map(str, options.values()))}": options
    for model, options in (
        ("lr", {"pooling": "sum"}),
        ("lr", {"pooling": "mean"}),
        ("fnn", {"pooling": "sum"}),
        ("wide_deep", {"pooling": "sum"}),
        ("wide_deep", {"pooling": "mean"}),
        ("pnn", {"pooling": "sum", "products": "inner"}),
        ("pnn", {"pooling": "mean", "products": "outer"}),
        ("pnn", {"pooling": "sum", "products": "both", "product": True}),
        ("deepfm", {"pooling": "sum"}),
        ("deepfm", {"pooling": "mean", "product": True}),
        ("nfm", {"pooling": "sum"}),
        ("nfm", {"pooling": "mean"}),
    )
}
UNITS = {
    f"din {interaction} {weights}": {
        "attention": [4, 3],
        "interaction": interaction,
        "weights": weights,
        "attention_activation": "dice",
        "recency": False,
    }
    for interaction, weights in itertools.product(("product", "outer"), ("raw", "softmax"))
}
UNITS |= {
    f"din with fields {kind}": {"attention": [4], "recency": False, "behaviour_fields": kind}
    for kind in ("shift", "none")
}
SEQUENCES: dict[str, dict[str, Any]] = {
    "dien": {},
    "dien product": {"product": True},
    "dsin": {},
    "dsin heads": {"heads": 3},
    "transformer 0": {"blocks": 0, "product": True},
    "transformer 1": {"blocks": 1, "heads": 3},
    "transformer 2": {"blocks": 2},
    "transformer 0 unordered": {"blocks": 0, "position": False},
}
OPTIONS = {**DIN, **BASE, **CROSSINGS, **TASKS, **UNITS, **SEQUENCES}
VARIANTS = list(OPTIONS)
ORDERED = {*SEQUENCES} - {"transformer 0 unordered"} | {
    each for each in OPTIONS if "recency" in each
}


def config(variant: str) -> NetworkConfig:
    """What a variant is made of."""
    model = variant.split(maxsplit=1)[0]
    small = {} if model == "lr" else SMALL
    return configure(model, {**small, **OPTIONS[variant]})


def network(variant: str, seed: int = 0) -> Network:
    """A network in float64 and eval mode whose every parameter matters."""
    made = config(variant).build(SCHEMA, SIZES).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in made.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2, generator=generator)
            elif value.is_floating_point():
                value.normal_(0, 0.5, generator=generator)
            if ".tables." in name or ".gates." in name:
                value[0] = 0
    return made


def batch(
    seed: int = 0,
    users: int = 3,
    length: int = 6,
    candidates: int = 8,
    missing: float = 0.2,
    whole: bool = False,
) -> Batch:
    """Users with 0 to ``length`` behaviours; candidates of anyone, in no order.

    They see parts of the history, or all of it, as the dense form needs. A share ``missing`` of
    all field values is PAD, the item ids left out. A third of the pauses is longer than the
    schema's ``session_gap``, a third just as long.
    """
    generator = np.random.default_rng(seed)

    def rows(*shape: int) -> np.ndarray:
        found = generator.integers(1, 9, shape)
        absent = generator.random(shape) < missing
        return np.where(absent, 0, found)

    width = {group: SCHEMA.width(group) for group in GROUPS}
    lengths = generator.integers(0, length + 1, users)
    lengths[0] = length
    history = rows(users, length, width["item"] + width["behaviour"])
    history[..., 0] = generator.integers(1, 9, (users, length))
    history[np.arange(length) >= lengths[:, None]] = 0
    pauses = np.random.default_rng((seed, 1)).choice([0, 10, 11], (users, length))
    item = rows(candidates, width["item"])
    item[:, 0] = generator.integers(1, 9, candidates)
    owner = generator.integers(0, users, candidates)
    ends = np.sort(generator.integers(0, lengths[owner] + 1, (2, candidates)), 0)
    if whole:
        ends = np.stack([owner * 0, lengths[owner]])
    return Batch(
        history=history,
        ts=pauses.cumsum(1),
        user=rows(users, width["user"]),
        item=item,
        ad=rows(candidates, width["ad"]),
        context=rows(candidates, width["context"]),
        owner=owner,
        start=ends[0],
        stop=ends[1],
    )


def logits(made: Network, of: Batch, dense: bool = False) -> torch.Tensor:
    with torch.inference_mode():
        return made(Tensors.of(of, dense))[0]

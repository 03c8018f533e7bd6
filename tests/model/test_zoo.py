"""Models by name and options."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

from model.base import BaseConfig
from model.dien import DIENConfig
from model.din import DINConfig
from model.transformer import TransformerConfig
from model.zoo import CONFIGS, configure


def test_options_become_a_configuration() -> None:
    """Lists become tuples, whole numbers may stand for shares, the rest are defaults."""
    found = configure("din", {"head": [8, 4], "dropout": 0, "weights": "softmax"})
    assert found == DINConfig(head=(8, 4), dropout=0, weights="softmax")
    assert configure("base", {}) == BaseConfig()
    assert configure("dien", {"auxiliary": 2}) == DIENConfig(auxiliary=2)
    assert configure("transformer", {"blocks": 0}) == TransformerConfig(blocks=0)


@pytest.mark.parametrize("model", CONFIGS)
def test_what_a_run_writes_down_is_the_same_configuration(model: str) -> None:
    """All options of a model can be given, those that it fixes too."""
    made = configure(model, {})
    assert configure(model, json.loads(json.dumps(asdict(made)))) == made


@pytest.mark.parametrize(
    ("model", "options", "expected"),
    [
        ("dine", {}, "model: expected one of lr, "),
        ("base", {"recency": True}, "recency: expected an option of base"),
        ("din", {"dim": 0}, "dim"),
        ("din", {"dim": 8.0}, "dim"),
        ("din", {"dim": True}, "dim"),
        ("din", {"attention": []}, "attention"),
        ("din", {"attention": 36}, "attention"),
        ("din", {"head": [200, -1]}, "head"),
        ("din", {"dropout": 1.0}, "dropout"),
        ("din", {"dropout": float("nan")}, "dropout"),
        ("din", {"recency": 1}, "recency"),
        ("din", {"weights": "hard"}, "weights: expected one of raw, softmax"),
        ("din", {"head_activation": "swish"}, "head_activation: expected one of sigmoid"),
        ("base", {"pooling": "max"}, "pooling: expected one of sum, mean"),
        ("mmoe", {"product_of": "click"}, "product_of: expected a list of names"),
        ("ple", {"product_of": [1]}, "product_of: expected a list of names"),
        ("ple", {"layers": 0}, "layers"),
        ("base", {"pooling": ["sum"]}, "pooling: expected one of sum, mean"),
        ("pnn", {"products": "cross"}, "products: expected one of inner, outer, both"),
        ("fnn", {"pretraining": 1.0}, "pretraining"),
        ("lr", {"dim": 8}, "dim: expected an option of lr: pooling$"),
        ("lr", {"head": [8]}, "head: expected an option of lr: pooling$"),
        ("nfm", {"product": True}, "product: expected an option of nfm: dim"),
        ("din", {"interaction": "sum"}, "interaction: expected one of difference, product, outer"),
        ("dien", {"auxiliary": -1.0}, "auxiliary"),
        ("dien", {"auxiliary": float("inf")}, "auxiliary"),
        ("dsin", {"heads": 0}, "heads"),
        ("dsin", {"session_length": 9}, "session_length: expected an option of dsin: dim"),
        ("transformer", {"blocks": 3}, "blocks: expected one of 0, 1, 2"),
        ("transformer", {"blocks": True}, "blocks: expected one of 0, 1, 2"),
        ("transformer", {"position": 1}, "position"),
    ],
)
def test_what_is_no_option_is_refused(model: str, options: dict[str, Any], expected: str) -> None:
    """The error names the option and what was expected."""
    with pytest.raises(ValueError, match=expected):
        configure(model, options)

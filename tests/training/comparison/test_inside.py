"""What networks learnt, against the form that trains and against a plain eigenvalue problem."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from model.network import Network
from model.tensors import Pairs, Tensors
from model.zoo import configure
from training.comparison import cost, inside
from training.dataset import Dataset
from training.fit import Encoded
from training.logs import Logs


@pytest.fixture
def encoded(shop_logs: Logs, shop_sets: dict[str, Dataset]) -> Encoded:
    return Encoded(shop_logs, {}, shop_sets["train"].encoder, shop_sets)


def network(encoded: Encoded, name: str, **options: Any) -> Network:
    """A network whose weights are all random: fresh ones have rows and gates of zero."""
    torch.manual_seed(0)
    sizes = {table: each.size for table, each in encoded.encoder.tables.items()}
    config = configure(name, {"dim": 3, "head": [5], **options})
    made = config.build(encoded.logs.schema, sizes)
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(torch.randn_like(weight) * 0.3)
    return made.eval()


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("din", {"attention": [4]}, True),
        ("din", {"attention": [4], "weights": "softmax"}, True),
        ("base", {}, False),
        ("base", {"pooling": "mean"}, False),
    ],
)
def test_attention_is_what_looks_at_the_candidate(
    encoded: Encoded, name: str, options: dict[str, Any], expected: bool
) -> None:
    """However it is normalised; pooling is none."""
    assert inside.attends(network(encoded, name, **options), encoded.encoder) is expected


def test_attention_shown_is_attention_used(encoded: Encoded) -> None:
    """The first candidate of each user has the weights of the form that trains, for the behaviours
    that its impression sees; behaviours and candidates are named in the order of the logs."""
    made, test = network(encoded, "din", attention=[4]), encoded.sets["test"]
    events = encoded.logs.events.sort("user_id", "ts", maintain_order=True)
    users = inside.attention(made, encoded)
    assert len(users) == 3
    for user in users:
        for at in range(len(test)):
            batch, _ = test.batch(np.array([at]), np.array([at + 1]))
            tensors = Tensors.of(batch)
            with torch.inference_mode():
                weight = made(tensors)[1]
            assert len(weight) == len(Pairs.of(tensors).row)
            item = events["item_id"][int(test.event[at])]
            shown = user["weights"][0]
            named = user["candidates"][0].startswith(item) and len(weight) == len(shown)
            if named and np.allclose(weight, shown, atol=1e-5):
                break
        else:
            pytest.fail("no impression has these weights")
        moment, name = events["ts"][int(test.event[at])], events["user_id"][int(test.event[at])]
        before = events.filter(
            (events["user_id"] == name) & events["behaviour"] & (events["ts"] < moment)
        )["item_id"].tail(len(shown))
        shown_ids = [each.partition(" (")[0] for each in user["behaviours"]]
        assert shown_ids == before.to_list()
        assert user["labels"][0] == test.label[at, 0]
        assert np.shape(user["weights"]) == (len(user["candidates"]), len(shown))


def test_no_history_shows_no_attention(encoded: Encoded) -> None:
    """Users of whom nothing is seen are not drawn."""
    test = encoded.sets["test"]
    blind = {**encoded.sets, "test": replace(test, start=test.stop)}
    assert inside.attention(network(encoded, "din"), replace(encoded, sets=blind)) == []


def test_items_lie_on_their_principal_components(encoded: Encoded) -> None:
    """The variances are the two largest eigenvalues of the covariance, and distances on the plane
    are none that the embeddings lack; an item has its first genre."""
    made = network(encoded, "base", dim=6)
    found = inside.item_map(made, encoded)
    assert found is not None
    rows = encoded.encoder.candidates(found["items"])[0][:, 0]
    table = made.embeddings.weights()["item_id"].detach().double().numpy()[rows]
    values = np.sort(np.linalg.eigvalsh(np.cov(table.T)))[::-1]
    place = np.stack([found["x"], found["y"]], 1)
    assert place.var(0, ddof=1) == pytest.approx(values[:2], rel=1e-3)
    assert found["explained"] == pytest.approx(values[:2] / values.sum())
    flat, full = (np.linalg.norm(each[:, None] - each[None], axis=-1) for each in (place, table))
    assert (flat <= full + 1e-4).all()
    assert sorted(found["impressions"], reverse=True) == found["impressions"]
    assert found["field"] == "genre"
    genre = dict(encoded.logs.items.select("item_id", "genre").rows())
    for item, category in zip(found["items"], found["category"], strict=True):
        assert category == (genre[item][0] if genre[item] else None)


def test_parameters_are_counted_by_hand(encoded: Encoded) -> None:
    """Tables and gates of ids; the layers are weights, biases and an alpha per neuron."""
    made, schema = network(encoded, "base"), encoded.logs.schema
    rows = {name: table.size for name, table in encoded.encoder.tables.items()}
    gates = sum(2 * 4 * 3 * rows[field.table] for field in schema.behaviour)
    tables = {field.table for g in ("user", "item", "ad", "context") for field in schema.group(g)}
    fields = 3 + 2 * 4 + 2 + 2  # user, item and interest, ad, context
    layers = (fields * 3 + 1) * 5 + 5 + (5 + 1) * 2
    assert cost.parameters(made) == {
        "tables": 3 * sum(rows[name] for name in tables) + gates,
        "layers": layers,
    }

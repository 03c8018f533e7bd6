"""What a network takes over from an earlier one, row by row and column by column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.contract.ids import FIRST, OOV, PAD, Vocabulary
from model.contract.schema import Schema
from model.network import Network
from model.tensors import Tensors
from model.zoo import configure
from tests.training import shop
from training.carry import Carried, Outline, carry, rows_by_key
from training.dataset import Dataset, build, learn_encoder
from training.fit import plain
from training.logs import Logs
from training.trainer import FitConfig, Trainer
from training.vocabulary import Seen, learn

KEYS = st.sets(st.integers(1, 2**64 - 1), max_size=30)


@given(KEYS, KEYS)
def test_rows_go_by_key(old: set[int], new: set[int]) -> None:
    """A known key's row is the row it had; PAD and OOV stay; a new key had none."""
    before, after = (np.asarray(sorted(each), np.uint64) for each in (old, new))
    rows = rows_by_key(before, after)
    assert rows[:FIRST].tolist() == [PAD, OOV]
    for key, row in zip(after.tolist(), rows[FIRST:].tolist(), strict=True):
        if key in old:
            assert before[row - FIRST] == key
        else:
            assert row == -1
    assert len(rows) == Vocabulary(after).size


def outline(logs: Logs, seen: Mapping[str, Seen], model: str = "din", **options: Any) -> Outline:
    config = {"dim": 4, "head": [8], "attention": [6], **options}
    return Outline(logs.schema, model, plain(asdict(configure(model, config))), seen)


def crossed(
    logs: Logs, seen: Mapping[str, Seen], model: str = "wide_deep", **options: Any
) -> Outline:
    """The outline of a model with weights per id beside its embeddings."""
    small = {} if model == "lr" else {"dim": 4, "head": [8]}
    config = configure(model, {**small, **options})
    return Outline(logs.schema, model, plain(asdict(config)), seen)


def network(of: Outline, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    tables = learn_sizes(of)
    made = configure(of.model, of.options).build(of.schema, tables)
    for weight in made.parameters():  # so that no two are alike, PAD aside
        with torch.no_grad():
            weight.add_(torch.randn_like(weight) * 0.1)
    for name, weight in made.state_dict().items():
        if ".tables." in name or ".gates." in name:
            weight[PAD] = 0
    return made


def learn_sizes(of: Outline) -> dict[str, int]:
    own = {name: len(each.keys) for name, each in of.seen.items()}
    return {
        name: FIRST + own.get(name, field.buckets or len(field.boundaries) + 1)
        for name, field in of.schema.tables.items()
    }


def carried(old: Outline, new: Outline, moments: Mapping[str, Tensor] | None = None) -> Carried:
    return carry(old, network(old).state_dict(), moments or {}, new, network(new, 1).state_dict())


def logits(made: Network, logs: Logs, seen: Mapping[str, Seen]) -> Tensor:
    """Of all impressions that train."""
    data = build(logs, learn_encoder(logs, seen))["train"]
    batch, _ = data.batch(*data.plan(10_000, 8, None)[0])
    with torch.inference_mode():
        found: Tensor = made.eval()(Tensors.of(batch))[0]
    return found


def loaded(into: Outline, found: Carried) -> Network:
    made = network(into, 1)
    made.load_state_dict(found.weights, strict=False)
    return made


def half(seen: Mapping[str, Seen]) -> dict[str, Seen]:
    """Every other id of each table."""
    return {name: Seen(each.keys[::2], each.day[::2]) for name, each in seen.items()}


def test_known_ids_keep_their_rows_and_new_ones_start_as_unknown_ones(shop_logs: Logs) -> None:
    """In every table and gate, whatever came or went in between."""
    every = learn(shop_logs)
    old, new = outline(shop_logs, half(every)), outline(shop_logs, every)
    before, found = network(old).state_dict(), carried(old, new)
    assert found.fresh == ()
    for table in ("item_id", "genre", "gender", "hour"):
        was, now = (w[f"embeddings.tables.{table}.weight"] for w in (before, found.weights))
        rows = rows_by_key(old.seen[table].keys, every[table].keys)
        assert torch.equal(now[rows >= 0], was[rows[rows >= 0]])
        fresh = network(new, 1).state_dict()[f"embeddings.tables.{table}.weight"]
        assert torch.equal(now[rows < 0], fresh[rows < 0] + was[OOV])
        gone = len(set(old.seen[table].keys.tolist()) - set(every[table].keys.tolist()))
        known = int((rows >= FIRST).sum())
        assert found.tables[table] == {
            "known": known, "new": len(rows) - FIRST - known, "forgotten": gone
        }  # fmt: skip
    back = carried(new, old)
    assert back.tables["item_id"]["forgotten"] == len(every["item_id"].keys) - len(
        old.seen["item_id"].keys
    )


def test_the_same_outline_carries_everything(shop_logs: Logs) -> None:
    """Scores are the same."""
    seen = learn(shop_logs)
    of = outline(shop_logs, seen)
    found = loaded(of, carried(of, of))
    assert torch.equal(logits(found, shop_logs, seen), logits(network(of), shop_logs, seen))


def test_forgetting_moves_ids_to_the_row_of_unknown_ones(shop_logs: Logs) -> None:
    """Scores where nothing was forgotten stay the same; elsewhere they are those of OOV."""
    seen = learn(shop_logs)
    fewer = half(seen)
    old, new = outline(shop_logs, seen), outline(shop_logs, fewer)
    made = loaded(new, carried(old, new))
    reference = network(old)
    for table, each in seen.items():
        gone = np.flatnonzero(~np.isin(each.keys, fewer[table].keys)) + FIRST
        weights = (
            [reference.embeddings.weights()[table]] if table in reference.embeddings.tables else []
        )
        weights += [g.weight for n, g in reference.history.gates.items() if n == table]
        with torch.no_grad():
            for weight in weights:
                weight[torch.from_numpy(gone)] = weight[OOV].clone()
    one, two = logits(made, shop_logs, fewer), logits(reference, shop_logs, seen)
    assert torch.allclose(one, two, atol=1e-6)


def test_of_gates_that_only_shift_the_shift_is_carried(shop_logs: Logs) -> None:
    """And back again, with a fresh scale."""
    seen = learn(shop_logs)
    gate, shift = outline(shop_logs, seen), outline(shop_logs, seen, behaviour_fields="shift")
    gates = {name: w for name, w in network(gate).state_dict().items() if "gates" in name}
    found, back = carried(gate, shift), carried(shift, gate)
    assert gates
    for name, weight in gates.items():
        width = weight.shape[1] // 2
        assert torch.equal(found.weights[name], weight[:, width:])
        assert torch.equal(back.weights[name][:, width:], network(shift).state_dict()[name])
        fresh = network(gate, 1).state_dict()[name]
        assert torch.equal(back.weights[name][FIRST:, :width], fresh[FIRST:, :width])


@pytest.mark.parametrize(
    ("model", "count"),  # embeddings, linear weights of candidate and behaviour, crosses
    [("wide_deep", 4), ("fnn", 3), ("lr", 2)],
)
def test_weights_per_id_go_by_key(model: str, count: int, shop_logs: Logs) -> None:
    """The same outline scores the same, and a new id weighs about what unknown ones did."""
    every = learn(shop_logs)
    of = crossed(shop_logs, every, model)
    found = loaded(of, carried(of, of))
    assert torch.equal(logits(found, shop_logs, every), logits(network(of), shop_logs, every))
    old = crossed(shop_logs, half(every), model)
    before, now = network(old).state_dict(), carried(old, of)
    assert now.fresh == ()
    rows = rows_by_key(old.seen["item_id"].keys, every["item_id"].keys)
    fresh = network(of, 1).state_dict()
    tables = [name for name in before if name.endswith("tables.item_id.weight")]
    assert len(tables) == count
    for table in tables:
        assert torch.equal(now.weights[table][rows >= 0], before[table][rows[rows >= 0]])
        assert torch.equal(
            now.weights[table][rows < 0], fresh[table][rows < 0] + before[table][OOV]
        )


def test_a_crossing_of_other_options_is_fresh(shop_logs: Logs) -> None:
    """What its weights count depends on the pooling; embeddings are carried all the same."""
    seen = learn(shop_logs)
    found = carried(crossed(shop_logs, seen), crossed(shop_logs, seen, pooling="mean"))
    assert {name.split(".")[0] for name in found.fresh} == {"crossing", "head"}


def changed(logs: Logs, text: str) -> Logs:
    """The same logs under another schema; what it adds is missing throughout."""
    from training.scores import recast

    return replace(recast(logs, Schema.parse(text)), schema_text=text)


ADDED = shop.SCHEMA + '\n[[context]]\nname = "weather"\n[[user]]\nname = "city"\n'


def test_a_field_more_leaves_scores_as_they_were(shop_logs: Logs) -> None:
    """Where the new fields are missing, whatever their place among the others."""
    logs = changed(shop_logs, ADDED)
    seen, more = learn(shop_logs), learn(logs)
    old, new = outline(shop_logs, seen), outline(logs, more)
    found = carried(old, new)
    assert set(found.fresh) == {
        "embeddings.tables.weather.weight", "embeddings.tables.city.weight"
    }  # fmt: skip
    one = logits(loaded(new, found), logs, more)
    assert torch.allclose(one, logits(network(old), shop_logs, seen), atol=1e-6)
    back = carried(new, old)
    assert back.fresh == ()
    two = logits(loaded(old, back), shop_logs, seen)
    assert torch.allclose(two, logits(network(new), logs, more), atol=1e-6)


@pytest.mark.parametrize("interaction", ["difference", "product", "outer"])
def test_an_item_field_more_leaves_scores_as_they_were(shop_logs: Logs, interaction: str) -> None:
    """The unit's columns go with the fields that they belong to, whatever the unit sees."""
    text = shop.SCHEMA.replace(
        '[[item]]\nname = "genre"', '[[item]]\nname = "colour"\n[[item]]\nname = "genre"'
    )
    logs = changed(shop_logs, text)
    seen, more = learn(shop_logs), learn(logs)
    old = outline(shop_logs, seen, interaction=interaction)
    new = outline(logs, more, interaction=interaction)
    fresh = configure("din", new.options).build(new.schema, learn_sizes(new)).state_dict()
    found = carry(old, network(old).state_dict(), {}, new, fresh)
    assert set(found.fresh) == {"embeddings.tables.colour.weight"}
    one, two = logits(loaded(new, found), logs, more), logits(network(old), shop_logs, seen)
    assert torch.allclose(one, two, atol=1e-5)
    assert two.std() > 0.01


def test_an_option_that_there_was_not_yet_had_its_default(shop_logs: Logs) -> None:
    """A state from before there were several interactions is carried as before."""
    of = outline(shop_logs, learn(shop_logs))
    options = {key: value for key, value in of.options.items() if key != "interaction"}
    assert carried(replace(of, options=options), of).fresh == ()


def test_other_models_carry_everything_or_their_tables(shop_logs: Logs) -> None:
    """The same model, options and fields: all of it; else what belongs to ids."""
    seen = learn(shop_logs)
    configs = (configure("transformer", {"heads": heads}) for heads in (1, 2))
    one, two = (Outline(shop_logs.schema, "transformer", plain(asdict(c)), seen) for c in configs)
    assert carried(one, one).fresh == ()
    assert {name.split(".")[0] for name in carried(one, two).fresh} == {"interest", "head"}


def test_a_task_less_leaves_the_others_as_they_were(shop_logs: Logs) -> None:
    """Outputs go by the task's name."""
    text = shop.SCHEMA.replace('[[task]]\nname = "click"\n', "")
    logs = changed(shop_logs, text)
    seen = learn(shop_logs)
    old, new = outline(shop_logs, seen), outline(logs, seen)
    one = logits(loaded(new, carried(old, new)), logs, seen)
    assert torch.allclose(one[:, 0], logits(network(old), shop_logs, seen)[:, 1], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "fresh"),
    [
        ({"head": [8, 8]}, {"head"}),
        ({"attention": [5]}, {"interest"}),
        ({"interaction": "product"}, {"interest"}),
        ({"interaction": "outer"}, {"interest"}),
        ({"dim": 5}, {"embeddings", "history", "interest", "head"}),
    ],
)
def test_parts_of_another_form_are_fresh(
    shop_logs: Logs, options: dict[str, Any], fresh: set[str]
) -> None:
    """An option that changes what the weights of a part mean leaves nothing of it; the rest is
    carried."""
    seen = learn(shop_logs)
    found = carried(outline(shop_logs, seen), outline(shop_logs, seen, **options))
    assert {name.split(".")[0] for name in found.fresh} == fresh
    assert {name.split(".")[0] for name in found.weights}.isdisjoint(fresh)


def test_what_a_task_is_the_product_of_decides_what_its_tower_means(shop_logs: Logs) -> None:
    """Several tasks: all is carried to the same options, to others only what is embedded."""
    seen = learn(shop_logs)
    old = outline(shop_logs, seen, "ple", expert=[5])
    found = carried(old, old)
    assert found.fresh == ()
    same = logits(loaded(old, found), shop_logs, seen)
    assert torch.equal(same, logits(network(old), shop_logs, seen))
    within = outline(shop_logs, seen, "ple", expert=[5], product_of=["click"])
    found = carried(old, within)
    assert {name.split(".")[0] for name in found.fresh} == {"interest", "head"}
    assert {name.split(".")[0] for name in found.weights} == {"embeddings", "history"}


def test_moments_go_with_their_rows(
    shop_sets: dict[str, Dataset], shop_logs: Logs, tmp_path: Any
) -> None:
    """Adam's moments move with known ids, new ids have none; a trainer goes on from them."""
    seen = learn(shop_logs)
    old = outline(shop_logs, seen)
    trainer = Trainer(network(old), shop_sets, FitConfig(size=64, epochs=0.5), 0, tmp_path)
    trainer.fit(lambda *_: None)
    moments = trainer.moments()
    name = "embeddings.tables.item_id.weight"
    assert moments[f"{name}.exp_avg"].abs().sum() > 0
    fewer = outline(shop_logs, half(seen))
    there = carried(old, fewer, moments)
    again = carried(fewer, old, there.moments)
    rows = rows_by_key(fewer.seen["item_id"].keys, seen["item_id"].keys)
    for what in ("exp_avg", "exp_avg_sq"):
        was, now = moments[f"{name}.{what}"], again.moments[f"{name}.{what}"]
        assert torch.equal(now[rows >= 0], was[rows >= 0])
        assert not now[rows < 0].any()
    fresh = Trainer(network(old, 1), shop_sets, FitConfig(size=64, epochs=0.5), 0, tmp_path)
    fresh.remember(moments)
    back = fresh.moments()
    assert back.keys() == moments.keys()
    assert all(torch.equal(torch.as_tensor(back[n]), moments[n]) for n in moments)
    (tmp_path / "other").mkdir()
    fresh.run = tmp_path / "other"
    assert fresh.fit(lambda *_: None).step > 0

"""Settings: what a recipe and --set give, and what they refuse."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, replace

import pytest

from model.contract.schema import Schema
from model.din import DINConfig
from model.tasks import MMoEConfig
from model.zoo import CONFIGS
from tests.training import shop
from training.recipe import FOLDER, SettingError, hold, settings
from training.trainer import FitConfig


def test_given_values_go_over_the_recipe_s() -> None:
    """Values are in TOML's notation; a bare word is text."""
    config, how = settings(
        "unheard-of", "din", ["head=[8, 4]", "weights=softmax", " rate = 1", "recency=false"]
    )
    assert isinstance(config, DINConfig)
    assert (config.head, config.weights, config.recency) == ((8, 4), "softmax", False)
    assert how == FitConfig(rate=1)


@pytest.mark.parametrize("schema", [*(path.stem for path in FOLDER.glob("*.toml")), "unheard-of"])
@pytest.mark.parametrize("model", CONFIGS)
def test_every_recipe_is_valid(schema: str, model: str) -> None:
    """Each data set has settings of each model without any --set."""
    settings(schema, model, [])


def test_a_model_without_a_recipe_takes_that_of_the_model_it_varies() -> None:
    """MMoE on DIN's interest: DIN's settings, and MMoE's own defaults."""
    (din, how), (mmoe, same) = (settings("movielens-1m", name, []) for name in ("din", "mmoe"))
    assert how == same
    inherited = set(asdict(din)) - {"head"}
    assert {name: getattr(mmoe, name) for name in inherited} == {
        name: getattr(din, name) for name in inherited
    }
    assert mmoe.head == MMoEConfig().head


@pytest.mark.parametrize(
    ("model", "given", "expected"),
    [
        ("din", "task_weights=[1]", "--set task_weights: expected a number for each task: a, b"),
        ("din", "task_weights=[1, 2, 3]", "--set task_weights: expected a number for each task"),
        ("mmoe", 'product_of=["b"]', "--set product_of: expected for b one of a, not 'b'"),
        ("esmm", 'product_of=["a", ""]', "--set product_of: expected a name for each task but"),
    ],
)
def test_settings_that_do_not_fit_the_tasks_are_refused(
    model: str, given: str, expected: str
) -> None:
    """Before anything is trained; what fits is let through."""
    tasks = '[[task]]\nname = "a"\n[[task]]\nname = "b"\n[[item]]\nname = "item_id"\n'
    schema = Schema.parse('name = "s"\n' + tasks)
    with pytest.raises(SettingError, match=expected):
        hold(schema, *settings("s", model, [given]))
    hold(schema, *settings("s", "ple", ["task_weights=[1, 0.5]", 'product_of=["a"]']))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("rate", "--set rate: expected key=value"),
        ("rate=", "--set rate: expected a number from 0 up, like 0.002"),
        ("rate=fast", "--set rate"),
        ("rate=-1", "--set rate"),
        ("rate=nan", "--set rate"),
        ("rate=0", "--set rate: expected a number above 0"),
        ("embedding_rate=0.0", "--set embedding_rate: expected a number above 0"),
        ("rate=inf", "--set rate"),
        ("rate=true", "--set rate"),
        ("size=0", "--set size: expected an integer above 0, like 512"),
        ("block=1.5", "--set block"),
        ("epochs=0", "--set epochs"),
        ("evaluations=0", "--set evaluations"),
        ("patience=0", "--set patience"),
        ("negatives_kept=0", "--set negatives_kept: expected a share"),
        ("negatives_kept=2", "--set negatives_kept: expected a share"),
        ("negatives_kept=few", "--set negatives_kept: expected a share"),
        ("colour=red", "--set colour: expected an option of din.* or of the training: size"),
        ("weights=hard", "--set weights: expected one of raw, softmax"),
        ("head=200", r"--set head: expected a list of integers from 1 to 8192, like \[200, 80\]"),
        ("recency=True", "--set recency: expected true or false"),
        ("dim=0", "--set dim: expected an integer from 1 to 8192, like 16"),
        ("dim=100000000", "--set dim: expected an integer from 1 to 8192, like 16"),
        ("head=[8, 9999]", r"--set head: expected a list of integers from 1 to 8192"),
        ("dropout=1", "--set dropout: expected a number from 0 and below 1"),
        ("task_weights=2", "--set task_weights: expected a list of numbers above 0"),
        ("task_weights=[1, 0]", "--set task_weights: expected a list of numbers above 0"),
        ("task_weights=[1, true]", "--set task_weights: expected a list of numbers above 0"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(given: str, expected: str) -> None:
    """The error names the key and what was expected, before anything is trained."""
    with pytest.raises(SettingError, match=expected):
        settings("unheard-of", "din", [given])


WITHOUT_A_TABLE = [
    (path.stem, model)
    for path in sorted(FOLDER.glob("*.toml"))
    for model in ("dien", "dsin", "transformer", "mmoe")
    if model not in tomllib.loads(path.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize(("recipe", "model"), WITHOUT_A_TABLE)
def test_models_without_a_table_of_their_own_train_as_din_does(recipe: str, model: str) -> None:
    """The same width, epochs and rates on one data set, so that a comparison compares models."""
    (config, how), (of_din, as_din) = settings(recipe, model, []), settings(recipe, "din", [])
    assert how == as_din
    assert (config.dim, config.dropout) == (of_din.dim, of_din.dropout)


def test_only_an_unknown_option_is_told_of_all_that_there_are() -> None:
    """A wrong value is told what it may be, and no more."""
    with pytest.raises(SettingError, match="or of the training: "):
        settings("unheard-of", "din", ["colour=1"])
    with pytest.raises(SettingError, match=r"weights: expected one of raw, softmax$"):
        settings("unheard-of", "din", ["weights=foo"])


def test_an_unknown_model_is_refused() -> None:
    """The error lists the models."""
    with pytest.raises(SettingError, match="--model dine: expected one of lr, "):
        settings("unheard-of", "dine", [])


@pytest.mark.parametrize(
    ("model", "given", "expected"),
    [
        ("dsin", "heads=3", "--set heads: expected a divisor of 64, the width of an item"),
        ("transformer", "heads=3", "--set heads: expected a divisor of 64"),
        ("dsin", "product=true", "--set product: the interest of this model is not as wide"),
    ],
)
def test_options_that_do_not_go_with_the_schema_are_refused(
    model: str, given: str, expected: str
) -> None:
    """The error names the option and what was expected, before anything is read or written."""
    schema = Schema.parse(shop.SCHEMA)  # 4 item fields
    hold(schema, *settings("unheard-of", model, []))
    with pytest.raises(SettingError, match=expected):
        hold(schema, *settings("unheard-of", model, [given]))


def test_a_model_that_needs_more_than_the_schema_has_is_refused() -> None:
    """The error names the model and what the schema lacks."""
    schema = replace(Schema.parse(shop.SCHEMA), session_gap=None)
    with pytest.raises(SettingError, match=r"^--model dsin: the schema has no session_gap, the "):
        hold(schema, *settings("unheard-of", "dsin", []))

"""Settings: what a recipe and --set give, and what they refuse."""

from __future__ import annotations

import pytest

from model.contract.schema import Schema
from model.din import DINConfig
from model.zoo import CONFIGS
from tests.training import shop
from training.recipe import FOLDER, SettingError, check, settings
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


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("rate", "--set rate: expected key=value"),
        ("rate=", "--set rate: expected a number like"),
        ("rate=fast", "--set rate"),
        ("rate=-1", "--set rate"),
        ("rate=nan", "--set rate"),
        ("rate=0", "--set rate: expected a number above 0"),
        ("embedding_rate=0.0", "--set embedding_rate: expected a number above 0"),
        ("rate=inf", "--set rate"),
        ("rate=true", "--set rate"),
        ("size=0", "--set size"),
        ("block=1.5", "--set block"),
        ("epochs=0", "--set epochs"),
        ("evaluations=0", "--set evaluations"),
        ("patience=0", "--set patience"),
        ("negatives_kept=0", "--set negatives_kept: expected a share"),
        ("negatives_kept=2", "--set negatives_kept: expected a share"),
        ("negatives_kept=few", "--set negatives_kept: expected a share"),
        ("colour=red", "--set colour: expected an option of din.* or of the training: size"),
        ("weights=hard", "--set weights: expected one of raw, softmax"),
        ("head=200", "--set head"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(given: str, expected: str) -> None:
    """The error names the key and what was expected, before anything is trained."""
    with pytest.raises(SettingError, match=expected):
        settings("unheard-of", "din", [given])


def test_an_unknown_model_is_refused() -> None:
    """The error lists the models."""
    with pytest.raises(SettingError, match="--model: expected one of din, base"):
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
    check(settings("unheard-of", model, [])[0], schema)
    with pytest.raises(SettingError, match=expected):
        check(settings("unheard-of", model, [given])[0], schema)

"""What ``--models`` takes: models, options and labels; what it refuses, and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.din import DINConfig
from model.zoo import CONFIGS
from tests.training import shop
from training.comparison.entrants import EntrantError, Spec, choose, enter, read


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with nothing but the shop's schema: that is all that entering looks at."""
    (tmp_path / "schema.toml").write_text(shop.SCHEMA, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "label", "model", "options"),
    [
        ("din", "din", "din", ()),
        ("din:weights=softmax", "din:weights=softmax", "din", ("weights=softmax",)),
        ("soft=din:weights=softmax,dim=4", "soft", "din", ("weights=softmax", "dim=4")),
        ("DIN, big = din:head=[8, 4],dim=4", "DIN, big", "din", ("head=[8, 4]", "dim=4")),
        ("B=base", "B", "base", ()),
    ],
)
def test_a_text_is_a_label_a_model_and_options(
    text: str, label: str, model: str, options: tuple[str, ...]
) -> None:
    """The label is the text itself where none is given; commas in lists part nothing."""
    assert read([text]) == [Spec(label, model, options)]


def test_names_alone_may_share_a_text() -> None:
    """With commas between them; a text with a label or options is one model's."""
    assert [spec.label for spec in read(["lr,base", "din:dim=4", "nfm"])] == [
        *("lr", "base", "din:dim=4", "nfm")
    ]


def test_without_any_the_whole_zoo_enters() -> None:
    """Each model by its name."""
    assert [(spec.label, spec.model) for spec in read([])] == [(name, name) for name in CONFIGS]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["dien2"], "--models 'dien2': dien2: expected one of lr, "),
        (["din,bse"], "--models 'bse': bse: expected one of lr, "),
        (["a=din,base"], "several are given as --models din,base, or each with a --models of its"),
        (["=din"], "expected a label of 1 to 100 characters"),
        (["..=din"], "expected a label"),
        ([f"{'x' * 101}=din"], "expected a label"),
        (["a="], "nothing: expected one of lr"),
        (["din:"], "expected KEY=VALUE after the colon"),
        (["din", "base", "din"], "--models 'din': expected a label unlike 'din'"),
        (["a b=din", "a/b=base"], "--models 'a/b': expected a label unlike 'a b'"),
    ],
)
def test_a_text_that_says_no_model_is_refused(texts: list[str], expected: str) -> None:
    """The error names it and what was expected; labels share no folder."""
    with pytest.raises(EntrantError) as raised:
        read(texts)
    assert expected in str(raised.value)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("colour=red", "--models 'a': colour: expected an option of din"),
        ("weights=hard", "--models 'a': weights: expected one of raw, softmax"),
        ("dim", "--models 'a': dim: expected key=value"),
        ("epochs=0", "--models 'a': epochs: expected a number above 0"),
    ],
)
def test_an_option_that_cannot_be_is_refused(data: Path, options: str, expected: str) -> None:
    """The error names the model, the option and what was expected."""
    with pytest.raises(EntrantError) as raised:
        enter(data, [f"a=din:{options}"], None, [])
    assert expected in str(raised.value)


def test_a_model_s_own_options_go_over_the_common_ones(data: Path) -> None:
    """And these over the recipe."""
    lineup = enter(data, ["din:dim=8", "base"], None, ["dim=4", "epochs=0.5"])
    one, two = lineup.entrants
    assert isinstance(one.config, DINConfig)
    assert (one.config.dim, two.config.dim) == (8, 4)
    assert one.how.epochs == two.how.epochs == 0.5


def test_a_common_option_is_for_the_models_that_have_it(data: Path) -> None:
    """LR has no width to choose; what no model has is refused."""
    lineup = enter(data, ["lr", "base"], None, ["dim=4", "pooling=sum"])
    assert [each.config.dim for each in lineup.entrants] == [1, 4]
    with pytest.raises(EntrantError, match="colour: expected an option of lr"):
        enter(data, ["lr", "base"], None, ["colour=red"])


def test_the_baseline_is_base_or_the_first_or_as_asked() -> None:
    """One that does not take part is refused with the labels that do."""
    specs = read(["din", "base", "deep=din:dim=4"])
    assert choose(specs, None) == "base"
    assert choose(specs[::2], None) == "din"
    assert choose(specs, "deep") == "deep"
    with pytest.raises(EntrantError, match="--baseline lr: expected one of din, base, deep"):
        choose(specs, "lr")


def test_a_model_that_a_schema_does_not_allow(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is left out of the whole zoo with its reason, and refused where it was asked for."""

    def refuse(*_: object) -> None:
        raise ValueError("din needs two tasks")

    monkeypatch.setattr(DINConfig, "build", refuse)
    lineup = enter(data, [], None, [])
    assert lineup.left_out["din"] == "din needs two tasks"
    names = [name for name in CONFIGS if name not in lineup.left_out]
    assert [each.label for each in lineup.entrants] == names
    for texts, baseline in ((["din"], None), ([], "din")):
        with pytest.raises(EntrantError, match="--models 'din': din needs two tasks"):
            enter(data, texts, baseline, [])


def test_a_model_that_needs_more_than_a_schema_has(data: Path) -> None:
    """As one that it does not allow; the reason is what the schema lacks."""
    text = shop.SCHEMA.replace("session_gap = 1\n", "")
    (data / "schema.toml").write_text(text, encoding="utf-8")
    lacking = "the schema has no session_gap, the pause that ends a session"
    assert enter(data, [], None, []).left_out == {"dsin": lacking}
    with pytest.raises(EntrantError, match=f"^--models 'D': {lacking}$"):
        enter(data, ["D=dsin"], None, [])


def test_models_for_several_tasks_where_there_is_one(data: Path) -> None:
    """Left out of the whole zoo with the reason; ESMM, which is nothing but a product, is refused
    where it is asked for, the others are not."""
    text = shop.SCHEMA.replace('[[task]]\nname = "buy"\n', "")
    (data / "schema.toml").write_text(text, encoding="utf-8")
    why = "it is for several tasks, and the schema has one"
    several = ("shared_bottom", "mmoe", "esmm", "ple")
    assert enter(data, [], None, []).left_out == dict.fromkeys(several, why)
    assert "mmoe" not in enter(data, [], "mmoe", []).left_out
    assert [each.label for each in enter(data, ["ple"], None, []).entrants] == ["ple"]
    lacking = "the schema has no second task, and esmm no product without one"
    with pytest.raises(EntrantError, match=f"^--models 'esmm': {lacking}$"):
        enter(data, ["esmm"], None, [])

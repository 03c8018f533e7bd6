"""Recipes: the settings of each model that work for a data set, from recipes/<schema>.toml.

A recipe has a table per model; its keys are those of the model's configuration and of `FitConfig`.
A model without one takes that of the model it varies, whose configuration its own derives from,
else what it knows of din's.
``--set key=value`` overrides them, the value in TOML's notation.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from model.contract.ids import FIRST
from model.contract.schema import Schema
from model.network import NetworkConfig, SchemaLacks
from model.zoo import CONFIGS, configure
from training.option import OptionError
from training.trainer import FitConfig

FOLDER = Path(__file__).with_name("recipes")


class SettingError(OptionError):
    """A setting that does not exist or has the wrong type."""


def settings(
    schema: str, model: str, given: Sequence[str], base: Mapping[str, Any] | None = None
) -> tuple[NetworkConfig, FitConfig]:
    """The configuration of a model and of its training: what is ``given`` over the schema's recipe,
    or over ``base`` in its place. Raises `SettingError`.
    """
    if model not in CONFIGS:
        raise SettingError(f"--model {model}: expected one of {', '.join(CONFIGS)}")
    if base is None:
        path = FOLDER / f"{schema}.toml"
        recipe = tomllib.loads((path if path.exists() else FOLDER / "default.toml").read_text())
        kinds = {kind: name for name, kind in CONFIGS.items()}
        varied = [*(kinds.get(kind, "") for kind in CONFIGS[model].mro()), "din"]
        found: dict[str, Any] = next((recipe[name] for name in varied if name in recipe), {})
        base = {k: v for k, v in found.items() if model in recipe or k in options(model)}
    values = {**base, **dict(_pair(each) for each in given)}
    default = asdict(FitConfig())
    try:
        config = configure(model, {k: v for k, v in values.items() if k not in default})
    except ValueError as error:
        also = ""
        if set(values) - {*default, *(each.name for each in fields(CONFIGS[model]))}:
            also = f"; or of the training: {', '.join(default)}"
        raise SettingError(f"--set {error}{also}") from None
    fit = {key: value for key, value in values.items() if key in default}
    for key, value in fit.items():
        if key == "task_weights":
            if not isinstance(value, (list, tuple)) or not all(_number(v) and v for v in value):
                raise SettingError(f"--set {key}: expected a list of numbers above 0")
            continue
        if key == "negatives_kept" and not (_number(value) and 0 < value <= 1):
            raise SettingError(f"--set {key}: expected a share above 0 and at most 1")
        if key in ("rate", "embedding_rate", "epochs") and value == 0:
            raise SettingError(f"--set {key}: expected a number above 0")
        if isinstance(default[key], int) and not (type(value) is int and value > 0):
            raise SettingError(f"--set {key}: expected an integer above 0, like {default[key]}")
        if isinstance(default[key], float) and not _number(value):
            raise SettingError(f"--set {key}: expected a number from 0 up, like {default[key]}")
    return config, FitConfig.of(fit)


def options(model: str) -> set[str]:
    """The keys that ``--set`` takes for a model: its own options and those of the training."""
    return {each.name for of in (CONFIGS[model], FitConfig) for each in fields(of) if each.init}


def hold(schema: Schema, config: NetworkConfig, how: FitConfig) -> None:
    """Raises `SettingError` where settings do not fit the schema's fields or tasks."""
    if how.task_weights and len(how.task_weights) != len(schema.tasks):
        tasks = ", ".join(schema.tasks)
        raise SettingError(f"--set task_weights: expected a number for each task: {tasks}")
    try:
        config.build(schema, dict.fromkeys(schema.tables, FIRST))
    except SchemaLacks as error:
        model = next(name for name, kind in CONFIGS.items() if kind is type(config))
        raise SettingError(f"--model {model}: {error}") from None
    except ValueError as error:
        raise SettingError(f"--set {error}") from None


def _number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


def _pair(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise SettingError(f"--set {text}: expected key=value")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()  # a bare word: --set weights=softmax

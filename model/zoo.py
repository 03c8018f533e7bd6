"""The models by name: what ``--model`` takes and how each is made from its options."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from model.base import BaseConfig
from model.crossings import DeepFMConfig, FNNConfig, NFMConfig, PNNConfig
from model.dien import DIENConfig
from model.din import DINConfig
from model.dsin import DSINConfig
from model.linear import LRConfig, WideDeepConfig
from model.network import NetworkConfig
from model.tasks import ESMMConfig, MMoEConfig, PLEConfig, SharedBottomConfig
from model.transformer import TransformerConfig

CONFIGS: dict[str, type[NetworkConfig]] = {
    "lr": LRConfig,
    "fnn": FNNConfig,
    "wide_deep": WideDeepConfig,
    "pnn": PNNConfig,
    "deepfm": DeepFMConfig,
    "nfm": NFMConfig,
    "base": BaseConfig,
    "din": DINConfig,
    "dien": DIENConfig,
    "dsin": DSINConfig,
    "transformer": TransformerConfig,
    "shared_bottom": SharedBottomConfig,
    "mmoe": MMoEConfig,
    "esmm": ESMMConfig,
    "ple": PLEConfig,
}
WIDEST = 8192  # of any layer or embedding: a slip of the keys is not to ask for all memory


def configure(name: str, options: Mapping[str, Any]) -> NetworkConfig:
    """The configuration of a model. Raises ValueError for an unknown model or option.

    What a model fixes may be said again, as run.json does, but not changed.
    """
    if name not in CONFIGS:
        raise ValueError(f"model: expected one of {', '.join(CONFIGS)}, not {name!r}")
    config, kinds = CONFIGS[name], get_type_hints(CONFIGS[name])
    default = asdict(config())
    known = {each.name: default[each.name] for each in fields(config) if each.init}
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    fixed = {key: default[key] for key in default.keys() - known}
    values = {k: v for k, v in values.items() if k not in fixed or v != fixed[k]}
    for key, value in values.items():
        if key not in known:
            raise ValueError(f"{key}: expected an option of {name}: {', '.join(known)}")
        choices = get_args(kinds[key]) if get_origin(kinds[key]) is Literal else ()
        if choices and (type(value) is not type(known[key]) or value not in choices):
            raise ValueError(f"{key}: expected one of {', '.join(map(str, choices))}")
        if kinds[key] == tuple[str, ...]:
            if not isinstance(value, (list, tuple)) or not all(type(v) is str for v in value):
                raise ValueError(f"{key}: expected a list of names")
        elif not choices and not _alike(key, value, known[key]):
            raise ValueError(f"{key}: expected {_expected(key, known[key])}")
    return config(**values)


def _alike(key: str, value: Any, default: Any) -> bool:
    """Whether a value fits an option: widths are positive, shares (dropout, pretraining) are below
    1, other numbers are not negative."""
    if isinstance(default, bool):
        return type(value) is bool
    if isinstance(default, tuple):
        return isinstance(value, (list, tuple)) and bool(value) and all(map(_width, value))
    if isinstance(default, int):
        return _width(value)
    return _number(value) and (value < 1 or not key.endswith(("dropout", "pretraining")))


def _expected(key: str, default: Any) -> str:
    """What `_alike` takes, as one types it in TOML."""
    if isinstance(default, bool):
        return "true or false"
    if isinstance(default, tuple):
        return f"a list of integers from 1 to {WIDEST}, like {list(default)}"
    if isinstance(default, int):
        return f"an integer from 1 to {WIDEST}, like {default}"
    share = key.endswith(("dropout", "pretraining"))
    return "a number from 0 and below 1" if share else "a number from 0 up"


def _width(value: Any) -> bool:
    return type(value) is int and 0 < value <= WIDEST


def _number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf

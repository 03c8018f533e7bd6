"""The models by name: what ``--model`` takes and how each is made from its options."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal, get_args, get_origin, get_type_hints

from model.base import BaseConfig
from model.dien import DIENConfig
from model.din import DINConfig
from model.dsin import DSINConfig
from model.network import NetworkConfig
from model.transformer import TransformerConfig

CONFIGS: dict[str, type[NetworkConfig]] = {
    "din": DINConfig,
    "base": BaseConfig,
    "dien": DIENConfig,
    "dsin": DSINConfig,
    "transformer": TransformerConfig,
}


def configure(name: str, options: Mapping[str, Any]) -> NetworkConfig:
    """The configuration of a model. Raises ValueError for an unknown model or option."""
    if name not in CONFIGS:
        raise ValueError(f"model: expected one of {', '.join(CONFIGS)}, not {name!r}")
    known, kinds = asdict(CONFIGS[name]()), get_type_hints(CONFIGS[name])
    for key, value in options.items():
        if key not in known:
            raise ValueError(f"{key}: expected an option of {name}: {', '.join(known)}")
        choices = get_args(kinds[key]) if get_origin(kinds[key]) is Literal else ()
        if choices and (type(value) is not type(known[key]) or value not in choices):
            raise ValueError(f"{key}: expected one of {', '.join(map(str, choices))}")
        if not choices and not _alike(key, value, known[key]):
            raise ValueError(f"{key}: expected a value like {known[key]!r}")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    return CONFIGS[name](**values)


def _alike(key: str, value: Any, default: Any) -> bool:
    """Whether a value fits an option: widths are positive, shares (dropout) are below 1, other
    numbers are not negative."""
    if isinstance(default, bool):
        return type(value) is bool
    if isinstance(default, tuple):
        return isinstance(value, (list, tuple)) and bool(value) and all(map(_width, value))
    if isinstance(default, int):
        return _width(value)
    return _number(value) and (value < 1 or not key.endswith("dropout"))


def _width(value: Any) -> bool:
    return type(value) is int and value > 0


def _number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf

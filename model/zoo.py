"""The models by name: what ``--model`` takes and how each is made from its options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from model.base import BaseConfig, base
from model.contract.schema import Schema
from model.din import DINConfig, din
from model.network import Network

Config = DINConfig | BaseConfig
CONFIGS: dict[str, type[DINConfig] | type[BaseConfig]] = {"din": DINConfig, "base": BaseConfig}


def configure(name: str, options: Mapping[str, Any]) -> Config:
    """The configuration of a model. Raises ValueError for an unknown model or option."""
    if name not in CONFIGS:
        raise ValueError(f"model: expected one of {', '.join(CONFIGS)}, not {name!r}")
    known = asdict(CONFIGS[name]())
    for key, value in options.items():
        if key not in known:
            raise ValueError(f"{key}: expected an option of {name}: {', '.join(known)}")
        if not _alike(value, known[key]):
            raise ValueError(f"{key}: expected a value like {known[key]!r}")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    return CONFIGS[name](**values)


def _alike(value: Any, default: Any) -> bool:
    if isinstance(default, tuple):
        return isinstance(value, (list, tuple)) and all(type(each) is int for each in value)
    if isinstance(default, float):
        return type(value) in (int, float)
    return type(value) is type(default)


def make(config: Config, schema: Schema, sizes: Mapping[str, int]) -> Network:
    """A fresh network over the tables of ``sizes`` (rows of each)."""
    if isinstance(config, DINConfig):
        return din(schema, sizes, config)
    return base(schema, sizes, config)

"""The entrants of a comparison: what ``--models`` takes, each with a label and its settings.

``[LABEL=]MODEL[:KEY=VALUE,...]``: a model of the zoo, with options over its recipe, and the name
that it has in the report (default: the text itself). Models by name alone may share a ``--models``,
with commas between them. A label's runs lie in the folder `folder`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model.contract.schema import Schema
from model.network import NetworkConfig
from model.tasks import TasksConfig
from model.zoo import CONFIGS
from training.option import OptionError
from training.recipe import SettingError, hold, options, settings
from training.trainer import FitConfig

LONGEST_LABEL = 100
SEVERAL = "several are given as --models din,base, or each with a --models of its own"
_NEXT_OPTION = re.compile(r",(?=\s*\w+\s*=)")  # not the comma in head=[200,80]


class EntrantError(OptionError):
    """What ``--models`` or ``--baseline`` can't take, and what was expected."""


@dataclass(frozen=True)
class Spec:
    """What one ``--models`` says."""

    label: str
    model: str
    options: tuple[str, ...]

    @property
    def folder(self) -> str:
        """The label as the name of a folder."""
        return re.sub(r"[^\w.-]+", "_", self.label)


@dataclass(frozen=True)
class Entrant:
    """A model and how it is trained."""

    label: str
    folder: str
    model: str
    config: NetworkConfig
    how: FitConfig


@dataclass(frozen=True)
class Lineup:
    """All entrants, the label they are compared with, and why others of the zoo have no place."""

    entrants: tuple[Entrant, ...]
    baseline: str
    left_out: dict[str, str]


def read(texts: Sequence[str]) -> list[Spec]:
    """The specs of all ``--models``; of the whole zoo without any. Raises `EntrantError`."""
    specs = [_spec(each) for text in texts or CONFIGS for each in _parted(text)]
    folders: dict[str, str] = {}
    for spec in specs:
        if spec.folder in folders:
            raise EntrantError(
                f"--models {spec.label!r}: expected a label unlike {folders[spec.folder]!r}; "
                "give one as in 'LABEL=MODEL'"
            )
        folders[spec.folder] = spec.label
    return specs


def choose(specs: Sequence[Spec], baseline: str | None) -> str:
    """The label to compare with: the one asked for, else base where it is there, else the first.

    Raises `EntrantError`.
    """
    labels = [spec.label for spec in specs]
    if baseline is None:
        return "base" if "base" in labels else labels[0]
    if baseline not in labels:
        raise EntrantError(f"--baseline {baseline}: expected one of {', '.join(labels)}")
    return baseline


def enter(data: Path, texts: Sequence[str], baseline: str | None, given: Sequence[str]) -> Lineup:
    """All entrants with their settings: the recipe's, over it ``given``, over that their own.

    What is ``given`` is for the models that have that option, one at least. Models that can't be
    made for the schema are refused where they were asked for, else left out, as are those for
    several tasks where it has one. Raises
    `EntrantError`, and `SchemaError` where there are no prepared logs.
    """
    specs = read(texts)
    choose(specs, baseline)
    schema = Schema.load(data / "schema.toml")
    entrants, left_out = [], {}
    anywhere = set().union(*(options(spec.model) for spec in specs))
    for spec in specs:
        others = anywhere - options(spec.model)
        shared = [each for each in given if each.partition("=")[0].strip() not in others]
        try:
            config, how = settings(schema.name, spec.model, [*shared, *spec.options])
        except SettingError as error:
            raise EntrantError(f"--models {spec.label!r}: {_said(error)}") from None
        asked = bool(texts) or spec.label == baseline
        if not asked and isinstance(config, TasksConfig) and len(schema.tasks) == 1:
            left_out[spec.label] = "it is for several tasks, and the schema has one"
            continue
        try:
            hold(schema, config, how)
        except SettingError as error:
            if asked:
                raise EntrantError(f"--models {spec.label!r}: {_said(error)}") from None
            left_out[spec.label] = _said(error)
            continue
        entrants.append(Entrant(spec.label, spec.folder, spec.model, config, how))
    if not entrants:
        raise EntrantError(f"--models: expected a model that {schema.name} allows: {left_out}")
    chosen = choose([spec for spec in specs if spec.label not in left_out], baseline)
    return Lineup(tuple(entrants), chosen, left_out)


def _said(error: SettingError) -> str:
    return re.sub(r"^--(set|model \w+:) ", "", str(error))


def _parted(text: str) -> list[str]:
    """The names in a text that is nothing but names; another text as it is."""
    return [text] if re.search("[=:]", text) else text.split(",")


def _spec(text: str) -> Spec:
    head, colon, rest = text.partition(":")
    label, named, model = head.partition("=")
    model = (model if named else head).strip()
    label = (label if named else text).strip()
    if not 0 < len(label) <= LONGEST_LABEL or not re.search(r"\w", label):
        raise EntrantError(
            f"--models {text!r}: expected a label of 1 to {LONGEST_LABEL} characters, letters or "
            "digits among them"
        )
    if model not in CONFIGS:
        raise EntrantError(
            f"--models {text!r}: {model or 'nothing'}: expected one of {', '.join(CONFIGS)}; "
            f"{SEVERAL}"
        )
    if colon and not rest.strip():
        raise EntrantError(f"--models {text!r}: expected KEY=VALUE after the colon")
    options = tuple(_NEXT_OPTION.split(rest)) if colon else ()
    return Spec(label, model, options)

"""Carrying: a network takes over from an earlier one what still has a meaning.

Rows of tables go by the key of the id, columns of layers by the field that they belong to, outputs
by their task, and so do Adam's moments. The vocabulary, the schema and the options may have changed
in between: what is new starts afresh.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.contract.ids import FIRST, OOV, PAD, Keys, Vocabulary
from model.contract.schema import GROUPS, Schema
from model.zoo import CONFIGS
from training.vocabulary import Seen

# The options that decide what the weights of a part mean: where one differs, the part is fresh.
_PARTS = {
    "embeddings": ("dim",),
    "history": ("dim",),
    "interest": ("dim", "attention", "attention_activation", "interaction", "weights"),
    "head": ("dim", "head", "head_activation", "product"),
}

_KNOWN = {"din", "base"}  # models whose every part is known here

_PLAIN = ("candidate", "interest")

Ints = npt.NDArray[np.int64]
Options = Mapping[str, Any]


@dataclass(frozen=True)
class Outline:
    """What the rows and columns of a network's weights mean."""

    schema: Schema
    model: str
    options: Options
    seen: Mapping[str, Seen]


@dataclass(frozen=True)
class Carried:
    """What a network took over. ``tables`` counts for each table the rows that were known, new and
    forgotten; ``fresh`` are the weights of which nothing could be taken."""

    weights: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    tables: Mapping[str, Mapping[str, int]]
    fresh: tuple[str, ...]


def carry(
    old: Outline,
    known: Mapping[str, Tensor],
    known_moments: Mapping[str, Tensor],
    new: Outline,
    fresh: Mapping[str, Tensor],
) -> Carried:
    """The weights of a network of another outline, ``fresh`` where nothing is known.

    A new id starts where unknown ids were, at the row of OOV, a little apart from the others.
    """
    places = _Places(old, new)
    weights: dict[str, Tensor] = {}
    moments: dict[str, Tensor] = {}
    for name, weight in fresh.items():
        axes, before = places.of(name), known.get(name)
        if axes is None or before is None or not _fits(weight, before, axes):
            continue
        weights[name] = found = _placed(weight, before, axes)
        if "tables" in name.split(".") or name.startswith("history."):
            # Nothing was known of the new columns of an unknown id either: they add nothing.
            unknown = _placed(weight[:1] * 0, before[OOV : OOV + 1], {**axes, 0: np.zeros(1, int)})
            found[torch.from_numpy(np.flatnonzero(axes[0] < 0))] += unknown
        for what in ("exp_avg", "exp_avg_sq"):
            if (moment := known_moments.get(f"{name}.{what}")) is not None:
                moments[f"{name}.{what}"] = _placed(torch.zeros_like(weight), moment, axes)
        if (step := known_moments.get(f"{name}.step")) is not None:
            moments[f"{name}.step"] = step
    left = tuple(name for name in fresh if name not in weights)
    return Carried(weights, moments, places.tables(), left)


class _Places:
    """Where each row and column of a network's weights stood in another one's."""

    def __init__(self, old: Outline, new: Outline) -> None:
        self.old, self.new = _complete(old), _complete(new)
        self._rows = {name: self._table(name) for name in new.schema.tables}

    def of(self, name: str) -> dict[int, Ints] | None:
        """For an axis of the weights called ``name``, the old index of each new one, -1 for what is
        new; axes that are left out did not change. None where the weights mean something else."""
        old, new = self.old, self.new
        part, *rest = name.split(".")
        if part not in ("embeddings", "history") and not {old.model, new.model} <= _KNOWN:
            return self._of_other(rest)
        if old.model != new.model and part == "interest":
            return None
        if any(old.options.get(each) != new.options.get(each) for each in _PARTS[part]):
            return None
        output = str(3 * len(new.options["head"]))  # behind layer, activation and dropout of each
        match [part, *rest]:
            case ["embeddings", "tables", table, "weight"]:
                rows = self._rows[table]
                return None if rows is None else {0: rows}
            case ["history", "gates", field, "weight"]:
                table_of = {each.name: each.table for each in new.schema.behaviour}
                before = {each.name: each.table for each in old.schema.behaviour}
                rows = self._rows[table_of[field]]
                if rows is None or before.get(field) != table_of[field]:
                    return None
                return {0: rows, 1: self._columns(_of_gate)}
            case ["head", "layers", "0", "weight"]:
                return {1: self._columns(_of_head)}
            case ["head", "layers", at, "weight" | "bias"] if at == output:
                return {0: _index(old.schema.tasks, new.schema.tasks)}
            case ["interest", "unit", "first", "weight"]:
                return {1: self._columns(_of_unit)}
            case ["interest", "recency"]:
                ages = np.arange(new.schema.history_length)
                return {0: np.where(ages < old.schema.history_length, ages, -1)}
        return {}

    def _of_other(self, rest: Sequence[str]) -> dict[int, Ints] | None:
        """Likewise of a part of another model: nothing moves but the rows of tables, and nothing
        is known where the model, its options or the fields are not the same."""
        old, new = self.old, self.new
        if (old.model, old.options) != (new.model, new.options) or _fields(old) != _fields(new):
            return None
        match rest:
            case [*_, "tables", table, "weight"]:
                rows = self._rows[table]
                return None if rows is None else {0: rows}
        return {}

    def tables(self) -> dict[str, dict[str, int]]:
        """Known, new and forgotten ids of each table that learns any."""
        found = {}
        for name, seen in self.new.seen.items():
            before = self.old.seen.get(name)
            known = 0 if before is None else int(np.isin(seen.keys, before.keys).sum())
            gone = 0 if before is None else len(before.keys) - known
            found[name] = {"known": known, "new": len(seen.keys) - known, "forgotten": gone}
        return found

    def _table(self, name: str) -> Ints | None:
        """The old row of each new row; None where the rows of the two are of another kind."""
        field, before = self.new.schema.tables[name], self.old.schema.tables.get(name)
        if before is None or (field.kind == "number") != (before.kind == "number"):
            return None
        if (field.buckets, field.boundaries) != (before.buckets, before.boundaries):
            return None
        if name not in self.new.seen:
            return np.arange(FIRST + (field.buckets or len(field.boundaries) + 1))
        return rows_by_key(self.old.seen[name].keys, self.new.seen[name].keys)

    def _columns(self, blocks: Callable[[Outline], list[Hashable]]) -> Ints:
        """The old column of each new one, where ``blocks`` names their blocks of ``dim``."""
        dim = int(self.new.options["dim"])
        block = _index(blocks(self.old), blocks(self.new))[:, None]
        return np.where(block < 0, -1, block * dim + np.arange(dim)).reshape(-1)


def _complete(outline: Outline) -> Outline:
    """With the defaults of options that there were not yet when it was written."""
    default = asdict(CONFIGS[outline.model]()) if outline.model in CONFIGS else {}
    return replace(outline, options={**default, **outline.options})


def _fields(outline: Outline) -> list[Hashable]:
    schema = outline.schema
    fields = [
        (group, each.name, each.table, each.width)
        for group in GROUPS
        for each in schema.group(group)
    ]
    return [schema.tasks, schema.history_length, *fields]


def rows_by_key(old: Keys, new: Keys) -> Ints:
    """The old row of each row of a vocabulary [n + 2] of the ``new`` keys [n], -1 for new ids."""
    rows = Vocabulary(old).rows(new)
    return np.concatenate([[PAD, OOV], np.where(rows == OOV, -1, rows)])


def _of_gate(outline: Outline) -> list[Hashable]:
    """``behaviour_fields`` is an option of some models; the others have gates."""
    shift = outline.options.get("behaviour_fields") == "shift"
    halves = ("shift",) if shift else ("scale", "shift")
    return [(half, item.name) for half in halves for item in outline.schema.item]


def _of_unit(outline: Outline) -> list[Hashable]:
    """Of an outer product there is a block for each column of q and item field of k."""
    items = [item.name for item in outline.schema.item]
    interaction = outline.options["interaction"]
    if interaction == "outer":
        columns = [(q, at) for q in items for at in range(int(outline.options["dim"]))]
        plain: list[Hashable] = [(part, item) for part in ("q", "k") for item in items]
        return plain + [(*column, k) for column in columns for k in items]
    parts = ("q", "k", "q*k") if interaction == "product" else ("q", "k", "q-k", "q*k")
    return [(part, item) for part in parts for item in items]


def _of_head(outline: Outline) -> list[Hashable]:
    schema = outline.schema
    parts = ("candidate", "interest", "product") if outline.options["product"] else _PLAIN
    fields = (*schema.user, *schema.context, *schema.ad)
    return [each.name for each in fields] + [(p, i.name) for p in parts for i in schema.item]


def _index(old: Sequence[Hashable], new: Sequence[Hashable]) -> Ints:
    """Where each of ``new`` is in ``old``, -1 where it is not."""
    at = {each: index for index, each in enumerate(old)}
    return np.asarray([at.get(each, -1) for each in new], np.int64)


def _fits(fresh: Tensor, old: Tensor, axes: Mapping[int, Ints]) -> bool:
    """Whether all axes but those that are placed agree."""
    return fresh.dim() == old.dim() and all(
        axis in axes or old.shape[axis] == size for axis, size in enumerate(fresh.shape)
    )


def _placed(fresh: Tensor, old: Tensor, axes: Mapping[int, Ints]) -> Tensor:
    """``fresh`` with what ``old`` has of it, by the old index along each of the ``axes``."""
    into: list[Tensor] = []
    source: list[Tensor] = []
    for axis, size in enumerate(fresh.shape):
        at = torch.from_numpy(axes[axis]) if axis in axes else torch.arange(size)
        kept = torch.nonzero(at >= 0).squeeze(-1)
        shape = [-1 if other == axis else 1 for other in range(fresh.dim())]
        into.append(kept.reshape(shape))
        source.append(at[kept].reshape(shape))
    found = fresh.detach().clone()
    found[tuple(into)] = old[tuple(source)].to(found.dtype)
    return found

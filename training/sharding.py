"""Embedding tables split over processes: TorchRec plans who holds which rows, and carries ids to
their owners, vectors back, and gradients to the owners again.

A step looks each distinct id up once. Its batch is renumbered to the rows that came, and the
network is the one that trains alone: only where a table was, there is a `Shard`. At the owner a
lookup is torch's own, with a sparse gradient, so that the optimiser and mini-batch-aware
regularisation of `training.trainer` work on a process's rows as they do on whole tables. FBGEMM's
kernels are not used for it: on a CPU none of them is Adam.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from model.contract.schema import Group as FieldGroup
from model.layers import Embeddings, History
from model.network import Network
from model.tensors import Tensors
from training.group import Span

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # FBGEMM warns of kernels for SSDs that its CPU build lacks
    from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor
    from torchrec.distributed import comm_ops
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.embedding_types import EmbeddingComputeKernel
    from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
    from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
    from torchrec.distributed.planner.types import KernelConfig, TopologyFactory, TrainerConfig
    from torchrec.distributed.types import ShardingEnv, ShardingType

KINDS = (ShardingType.TABLE_WISE.value, ShardingType.ROW_WISE.value)
RESERVED = 0.15  # share of a device's memory that the planner leaves to all but tables
GROUPS: tuple[FieldGroup, ...] = ("user", "item", "ad", "context")


class Shard(nn.Module):
    """The place of a table: ``weight`` (rows held here, width), and the vectors of this step.

    ``vectors`` (n, width) are in the order of the renumbered ids, those of PAD first.
    """

    vectors: Tensor
    sparse = True

    def __init__(self, weight: Tensor, span: Span) -> None:
        super().__init__()
        self.weight, self.span = nn.Parameter(weight), span

    def forward(self, ids: Tensor) -> Tensor:  # (...) -> (..., width)
        return nn.functional.embedding(ids, self.vectors)


class Sharded:
    """The tables of a network, split over the processes of the default group.

    ``network``'s tables become shards of what they were. All of its sparse tables must be those of
    its `Embeddings` and `History`; raises TypeError for others.
    """

    def __init__(
        self, network: Network, local_size: int, kinds: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        """``local_size`` processes share a machine; ``kinds`` of sharding per parameter, all of
        `KINDS` where there are none: the planner chooses."""
        # Advice on settings that are chosen here, and on tracing.
        for name in ("torchrec", "fbgemm_gpu", "torch.fx._symbolic_trace"):
            logging.getLogger(name).setLevel(logging.ERROR)
        comm_ops.set_gradient_division(False)  # the loss is the mean over the whole batch already
        self.id_tables = _id_tables(network)
        self.columns = _columns(network)
        self.spans: dict[str, Span] = {}
        self.shards: dict[str, Shard] = {}
        self.collections = []
        by_width: dict[int, list[str]] = {}
        for name, weight in network.sparse().items():
            if name not in self.id_tables:
                raise TypeError(f"{name}: this model has tables that can't be sharded")
            by_width.setdefault(weight.shape[1], []).append(name)
        for names in by_width.values():  # a collection has tables of one width
            self.collections.append((names, self._shard(network, names, local_size, kinds or {})))

    def fetch(self, batch: Tensors) -> Tensors:
        """Look up all ids of a batch; it comes back renumbered. Called by all processes at once."""
        found: dict[str, Tensor] = {}
        arrays = {name: getattr(batch, name).clone() for name in (*GROUPS, "history")}
        for table, columns in self.columns.items():
            parts = [arrays[name][..., at] for name, at in columns]
            flat = torch.cat([parts[0].new_zeros(1), *(part.flatten() for part in parts)])
            ids, places = flat.unique(return_inverse=True)  # sorted: PAD, which is 0, is the first
            found[table] = ids[1:]
            for (name, at), part in zip(
                columns, places[1:].split([part.numel() for part in parts]), strict=True
            ):
                arrays[name][..., at] = part.view_as(arrays[name][..., at])
        for names, collection in self.collections:
            ids = [found[self.id_tables[name]] for name in names]
            wanted = KeyedJaggedTensor(
                keys=[_key(name) for name in names],
                values=torch.cat(ids),
                lengths=torch.tensor([len(each) for each in ids], device=ids[0].device),
            )
            vectors = collection(wanted)
            for name in names:
                came = vectors[_key(name)].values()
                self.shards[name].vectors = torch.cat([came.new_zeros(1, came.shape[1]), came])
        return batch._replace(**arrays)

    def _shard(
        self,
        network: Network,
        names: Sequence[str],
        local_size: int,
        kinds: Mapping[str, Sequence[str]],
    ) -> Any:
        """A sharded collection of tables of one width, which takes their rows from the network."""
        whole = network.sparse()
        rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        device = whole[names[0]].device
        collection = EmbeddingCollection(
            tables=[
                EmbeddingConfig(
                    name=_key(name),
                    feature_names=[_key(name)],
                    num_embeddings=whole[name].shape[0],
                    embedding_dim=whole[name].shape[1],
                )
                for name in names
            ],
            device=torch.device("meta"),
        )
        sharder = _Sharder()
        planner = EmbeddingShardingPlanner(
            topology=TopologyFactory.create_topology(
                TrainerConfig(world_size=size, local_world_size=local_size),
                kernel_config=KernelConfig(compute_device=device.type),
            ),
            storage_reservation=FixedPercentageStorageReservation(RESERVED),
            constraints={
                _key(name): ParameterConstraints(sharding_types=[*kinds.get(name, KINDS)])
                for name in names
            },
        )
        plan = planner.plan(collection, [sharder]).plan[""]  # the same in every process
        sharded = sharder.shard(
            collection, plan, ShardingEnv.from_process_group(torch.distributed.group.WORLD), device
        )
        held: dict[str, Tensor] = {}
        for lookup in sharded._lookups:
            for kernel in lookup._emb_modules:
                held |= zip(
                    (table.name for table in kernel.config.embedding_tables),
                    kernel.split_embedding_weights(),
                    strict=True,
                )
        for name in names:
            first, rows = 0, 0
            for each in plan[_key(name)].sharding_spec.shards:
                if each.placement.rank() == rank:
                    first, rows = each.shard_offsets[0], each.shard_sizes[0]
            span = Span(first, first + rows, len(whole[name]))
            weight = held.get(_key(name), whole[name].new_empty(0, whole[name].shape[1])).detach()
            with torch.no_grad():
                weight.copy_(whole[name][span.first : span.last])
            self.shards[name], self.spans[name] = Shard(weight, span), span
            network.set_submodule(name.removesuffix(".weight"), self.shards[name])
        for lookup in sharded._lookups:
            lookup._emb_modules = nn.ModuleList(
                _Rows([self.shards[_name(table.name)] for table in kernel.config.embedding_tables])
                for kernel in lookup._emb_modules
            )
        return sharded


class _Rows(nn.Module):
    """The lookup of tables at their owner, in place of an FBGEMM kernel: sparse gradients."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        super().__init__()
        self.shards = list(shards)

    def forward(self, features: Any) -> Tensor:
        found = [
            nn.functional.embedding(features[key].values(), shard.weight, sparse=True)
            for key, shard in zip(features.keys(), self.shards, strict=True)
        ]
        return torch.cat(found)


class _Sharder(EmbeddingCollectionSharder):  # type: ignore[misc]
    """By table or by rows, so that a shard is a range of rows; memory of its own, no optimiser."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return [*KINDS]

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        return [EmbeddingComputeKernel.FUSED.value]


def _id_tables(network: Network) -> dict[str, str]:
    """The id table that each sparse parameter has vectors for, by the parameter's name."""
    found: dict[str, str] = {}
    for prefix, module in network.named_modules():
        if isinstance(module, Embeddings):
            found |= {f"{prefix}.tables.{name}.weight": name for name in module.tables}
        elif isinstance(module, History):
            found |= {f"{prefix}.gates.{name}.weight": table for name, table in module.names}
    return found


def _columns(network: Network) -> dict[str, list[tuple[str, slice]]]:
    """Where the ids of each id table are: array of the batch, columns."""
    schema = network.schema
    found: dict[str, list[tuple[str, slice]]] = {}
    places: list[tuple[str, FieldGroup, int]] = [
        *((group, group, 0) for group in GROUPS),
        ("history", "item", 0),
        ("history", "behaviour", schema.width("item")),
    ]
    for array, group, shift in places:
        columns = schema.columns(group)
        for field in schema.group(group):
            at = columns[field.name]
            found.setdefault(field.table, []).append(
                (array, slice(at.start + shift, at.stop + shift))
            )
    return found


def _key(name: str) -> str:
    """A parameter's name as TorchRec takes it, without dots."""
    return name.replace(".", "/")


def _name(key: str) -> str:
    return key.replace("/", ".")

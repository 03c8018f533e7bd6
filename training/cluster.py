"""Several processes that train together, as torchrun starts them: `join` gives their group.

Dense gradients, Dice's statistics, the loss and the logits of an evaluation are sums over the
processes; the embedding tables are split (`training.sharding`). Each process reads all the logs,
or all shards of them, since the plan of the batches is the same everywhere, and computes its share
of each batch's blocks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from model.layers import Dice
from model.network import Network
from model.tensors import Tensors
from training.group import Group, Span

if TYPE_CHECKING:
    from training.sharding import Sharded


class ClusterError(RuntimeError):
    """A group of processes that can't start, or can't go on."""


@contextmanager
def join() -> Iterator[Group]:
    """The group of this process: that of torchrun's environment, or alone without one.

    Raises `ClusterError` when the extra is missing, or where a lost process could not come back.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Group()
        return
    missing = [name for name in ("torchrec", "fbgemm_gpu") if find_spec(name) is None]
    if missing:
        raise ClusterError(
            f"{size} processes: {' and '.join(missing)} missing; install the extra cluster "
            "(docs/scale.md), or train with one process"
        )
    store = _store()
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    try:
        yield Cluster(int(os.environ.get("LOCAL_WORLD_SIZE", size)))
    except RuntimeError as error:
        if "gloo" not in str(error):
            raise
        raise ClusterError(f"a process was lost; torchrun may start all again ({error})") from None
    finally:
        dist.destroy_process_group()


def _store() -> Any:
    """Where the processes of this start find each other.

    torchrun of 2.13 keeps one store for all its starts and does not part them, so a group that is
    started again would look for processes that are gone. On one machine the count of starts parts
    them; machines count differently, so that there the store must not be kept.
    """
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if kept and int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1:
        raise ClusterError(
            "several machines: start torchrun with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, without "
            "which it can't start a lost group again (docs/scale.md)"
        )
    store = next(iter(rendezvous("env://")))[0]
    starts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if kept else "0"
    return dist.PrefixStore(starts, store)  # type: ignore[attr-defined]


class Cluster(Group):
    """The processes of the default group of torch.distributed; ``local_size`` on each machine."""

    def __init__(self, local_size: int) -> None:
        self.rank, self.size, self.local_size = dist.get_rank(), dist.get_world_size(), local_size
        self._sharded: Sharded | None = None

    def shard(self, network: Network, **kinds: Any) -> None:
        """Split the tables of a network, and make each Dice see the whole batch."""
        from training.sharding import Sharded

        self._sharded = Sharded(network, self.local_size, **kinds)
        for module in network.modules():
            if isinstance(module, Dice):
                module.total = total

    @property
    def spans(self) -> Mapping[str, Span]:
        return {} if self._sharded is None else self._sharded.spans

    def fetch(self, batch: Tensors) -> Tensors:
        assert self._sharded is not None
        return self._sharded.fetch(batch)

    def reduce(self, parameters: Iterable[Tensor]) -> None:
        """One sum for all of them: the dense half is small, what costs is the waiting."""
        held = list(parameters)
        for each in held:
            if each.grad is None:
                each.grad = torch.zeros_like(each)
        gradients = [each.grad for each in held if each.grad is not None]
        flat = torch.cat([each.flatten() for each in gradients])
        dist.all_reduce(flat)
        for gradient, part in zip(
            gradients, flat.split([each.numel() for each in gradients]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))

    def sum(self, value: float) -> float:
        found = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(found)
        return float(found)

    def merge(self, array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        found = torch.from_numpy(array)
        dist.all_reduce(found)
        merged: npt.NDArray[np.float32] = found.numpy()
        return merged

    def draw(self, seed: int, step: int) -> None:
        """By step and rank, so that training goes on alike wherever it was interrupted."""
        source = np.random.SeedSequence((seed, step, self.rank))
        torch.manual_seed(int(source.generate_state(1, np.uint64)[0]))

    def agree(self, work: Callable[[], None]) -> None:
        failed: Exception | None = None
        try:
            work()
        except Exception as error:  # whatever it is, the others must not wait for this process
            failed = error
        count = self.sum(0.0 if failed is None else 1.0)
        if failed is not None:
            raise failed
        if count:
            raise ClusterError("stopped: another process could not go on and says why")


class _Total(torch.autograd.Function):
    """The sum of a tensor over the processes; so is the gradient of it."""

    @staticmethod
    def forward(_: Any, tensor: Tensor) -> Tensor:
        found = tensor.detach().clone()
        dist.all_reduce(found)
        return found

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        found = gradients[0].clone()
        dist.all_reduce(found)
        return found


def total(tensor: Tensor) -> Tensor:
    """`Dice.total`. Every process must call it, and its backward pass, equally often."""
    found: Tensor = _Total.apply(tensor)  # type: ignore[no-untyped-call]
    return found

"""Training steps on several processes: samples/s, and what crosses the network in a step.

    python -m bench.cluster --data var/data/NAME
    torchrun --standalone --nproc-per-node 2 -m bench.cluster --data var/data/NAME

Samples per second of CPU time are what a core does; those per second of the clock say more only
where each process has a core to itself.
"""

from __future__ import annotations

import time
from itertools import islice
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from bench.measure import load
from training import cluster
from training.cluster import Cluster
from training.dataset import build, learn_encoder
from training.logs import Logs
from training.recipe import settings
from training.trainer import Trainer

WARM = 5


def main(
    data: Annotated[Path, typer.Option(help="Folder that prepare wrote.")],
    model: Annotated[str, typer.Option(help="din or base.")] = "din",
    steps: Annotated[int, typer.Option(min=1, help="Measured, after some that are not.")] = 60,
) -> None:
    """Samples/s of the trainer's steps, batch assembly included, of all processes together."""
    torch.set_num_threads(1)
    logs = Logs.read(data)
    sets = build(logs, learn_encoder(logs))
    config, how = settings(logs.schema.name, model, [])
    torch.manual_seed(0)
    sizes = {name: table.size for name, table in sets["train"].encoder.tables.items()}
    network = config.build(logs.schema, sizes)
    with cluster.join() as group:
        if isinstance(group, Cluster):
            group.shard(network)
        trainer = Trainer(network, sets, how, 0, Path("unused"), group=group)
        todo = islice(trainer._batches(), WARM + steps)
        for batch in islice(todo, WARM):
            trainer._step(*batch)
        samples = rows = 0
        wall, cpu = time.perf_counter(), time.process_time()
        for batch, label, size in todo:
            trainer._step(batch, label, size)
            samples += size
            rows += sum(
                weight.grad.coalesce().indices().shape[1]
                for weight in network.sparse().values()
                if weight.grad is not None
            )
        wall, cpu = time.perf_counter() - wall, group.sum(time.process_time() - cpu)
        held = group.sum(rows)
        dense = sum(p.numel() for each in trainer.dense.param_groups for p in each["params"])
        if group.leader:
            Console().print(
                f"{data}, {group.size} processes, {steps} steps of {how.size}, load {load()}: "
                f"{samples / cpu:,.0f} samples per second of CPU time, {samples / wall:,.0f} per "
                f"second; in a step {held / steps:,.0f} rows of tables, {dense:,} dense parameters",
                soft_wrap=True,
                highlight=False,
            )


if __name__ == "__main__":
    typer.run(main)

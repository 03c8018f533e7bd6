"""Forked processes that form a group, as torchrun's do, without the seconds of its start."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.kill import end, start
from training.cluster import Cluster


def need_torchrec() -> None:
    """Skip where the extra cluster is not installed; what is imported here, children need not."""
    for name in ("torchrec", "fbgemm_gpu"):
        pytest.importorskip(name, reason="the extra cluster is not installed")
    import training.sharding  # noqa: F401


def together(size: int, folder: Path, work: Callable[[Cluster], None]) -> list[int]:
    """Run ``work`` in ``size`` processes; their exit statuses. Tracebacks go to our stderr."""
    meeting = folder / f"meeting-{len(list(folder.glob('meeting-*')))}"

    def of_rank(rank: int) -> None:
        try:
            dist.init_process_group(
                "gloo", store=dist.FileStore(str(meeting), size), rank=rank, world_size=size
            )
            work(Cluster(size))
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)

    children = [start(lambda rank=rank: of_rank(rank)) for rank in range(size)]
    return [end(child) for child in children]

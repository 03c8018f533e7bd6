"""Publish: a finished run becomes the next version of a repository, if the parity gate lets it."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from model.contract import bundle
from model.contract.repository import Repository
from terminal.progress import Update, quiet
from training import state
from training.drift import HISTOGRAM
from training.export import exact_logits, export, parity
from training.run import Run


def publish(
    run: Run,
    root: Path,
    update: Update = quiet,
    *,
    lineage_too: Mapping[str, Any] | None = None,
    more: Mapping[str, bytes] | None = None,
) -> tuple[Repository, int, float]:
    """The repository, the new version, and the parity gate's largest |dlogit|.

    ``lineage_too`` goes into its lineage, the files ``more`` into its folder.
    Raises `ParityError`, `RunError`, and `BundleError`; then nothing is published.
    """
    about, encoder = run.about(), run.encoder()
    network, calibration = run.network(encoder), run.calibration()
    graph = export(network, calibration, encoder, update)
    worst = max(parity(network, calibration, encoder, graph, update).values())
    update("publish", 0, 0, {})
    requests = run.golden()
    batch = bundle.encode_golden(encoder, requests)
    exact = exact_logits(copy.deepcopy(network).double().eval(), calibration, batch)
    golden = bundle.Golden(requests, batch, exact.astype(np.float32))
    kept = ("model", "options", "fit", "seed", "logs", "learnt_until")
    lineage = {key: about[key] for key in kept if key in about}
    lineage["progress"] = {k: v for k, v in about["progress"].items() if k != "losses"}
    lineage |= {"created": int(time.time()), **(lineage_too or {})}
    repository = Repository(root, encoder.schema.name)

    def fill(folder: Path) -> None:
        lineage["state"] = state.keep(run.state, repository.folder)
        bundle.write(
            folder,
            schema_text=run.schema_text(),
            encoder=encoder,
            graph=graph,
            golden=golden,
            metrics={**about["metrics"], HISTOGRAM: about[HISTOGRAM]},
            lineage=lineage,
            more=more or {},
        )

    return repository, repository.publish(fill), worst

"""Publish: a finished run becomes the next version of a repository, if the parity gate lets it."""

from __future__ import annotations

import copy
import time
from pathlib import Path

import numpy as np

from model.contract import bundle
from model.contract.repository import Repository
from training.export import exact_logits, export, parity
from training.report import Update
from training.run import Run


def publish(
    run: Run, root: Path, update: Update = lambda stage, done, total, figures: None
) -> tuple[Repository, int, float]:
    """The repository, the new version, and the parity gate's largest |dlogit|.

    Raises `ParityError`, `RunError`, and `BundleError`; then nothing is published.
    """
    about, encoder = run.about(), run.encoder()
    network, calibration = run.network(encoder), run.calibration()
    update("export", 0, 3, {})
    graph = export(network, calibration, encoder)
    update("export", 1, 3, {})
    worst = max(parity(network, calibration, encoder, graph).values())
    update("export", 2, 3, {})
    requests = run.golden()
    batch = bundle.encode_golden(encoder, requests)
    exact = exact_logits(copy.deepcopy(network).double().eval(), calibration, batch)
    golden = bundle.Golden(requests, batch, exact.astype(np.float32))
    kept = ("model", "options", "fit", "seed", "logs", "progress")
    lineage = {key: about[key] for key in kept if key in about}
    lineage["created"] = int(time.time())
    repository = Repository(root, encoder.schema.name)
    version = repository.publish(
        lambda folder: bundle.write(
            folder,
            schema_text=run.schema_text(),
            encoder=encoder,
            graph=graph,
            golden=golden,
            metrics=about["metrics"],
            lineage=lineage,
        )
    )
    update("export", 3, 3, {})
    return repository, version, worst

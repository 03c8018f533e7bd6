"""Several processes: the same training as one, whatever their number, and whoever is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from model.zoo import configure
from terminal.progress import quiet
from tests.training.together import need_torchrec, together
from training import checkpoint, cluster, recipe
from training.__main__ import app
from training.cluster import Cluster, ClusterError
from training.dataset import Dataset, build, learn_encoder
from training.encoded import in_parts
from training.fit import fit
from training.group import Group, Span
from training.logs import Logs
from training.publish import publish
from training.run import Run
from training.trainer import FitConfig, Trainer, TrainingError, predict
from training.world import World

# 15 steps an epoch, an evaluation at each fifth one; the last batch has fewer blocks.
CONFIG = FitConfig(size=94, block=4, epochs=1, evaluations=3, patience=9, regularisation=0.1)
OPTIONS = {"dim": 4, "head": [8], "attention": [6], "weights": "softmax"}
KINDS = ("row_wise", "table_wise")
SETTINGS = ["head_activation=dice", "attention_activation=dice", "epochs=1", "evaluations=6"]
SETTINGS += ["shard=5000"]  # of 12,000 events: three shards on disk


@pytest.fixture(scope="module", autouse=True)
def torchrec() -> None:
    need_torchrec()


@pytest.fixture(scope="module")
def sets() -> dict[str, Dataset]:
    world = World(users=35, items=60, categories=8, interests=2, seed_clicks=6, seed=1)
    logs = world.logs(60)
    return build(logs, learn_encoder(logs))


def trainer(
    sets: Mapping[str, Dataset], run: Path, group: Group | None = None, **how: Any
) -> Trainer:
    """A trainer whose tables are split by rows and as a whole in turn."""
    run.mkdir(exist_ok=True)
    torch.manual_seed(0)
    encoder = sets["train"].encoder
    sizes = {name: table.size for name, table in encoder.tables.items()}
    network = configure("din", OPTIONS).build(encoder.schema, sizes)
    if isinstance(group, Cluster):
        kinds = {name: [KINDS[at % 2]] for at, name in enumerate(network.sparse())}
        group.shard(network, kinds=kinds)
    return Trainer(network, dict(sets), replace(CONFIG, **how), 0, run, group=group)


def gradients(made: Trainer, batches: int) -> dict[str, Tensor]:
    """The gradients of the last of some steps, tables as dense tensors of the rows held here; the
    loss of each; and Dice's statistics, which the steps before it have moved."""
    found: dict[str, Tensor] = {}
    steps = made._batches()
    losses = [made._step(*next(steps)) for _ in range(batches)]
    found["losses"] = torch.tensor(losses)
    for name, weight in made.network.named_parameters():
        if weight.grad is not None:
            found[name] = weight.grad.to_dense()
    found |= {k: v for k, v in made.network.state_dict().items() if "running" in k}
    return found


@pytest.mark.parametrize("size", [2, 3])
def test_the_gradients_of_many_are_those_of_one(
    size: int, sets: dict[str, Dataset], tmp_path: Path
) -> None:
    """Of each parameter, regularisation and Dice's statistics over all impressions included."""

    def work(group: Cluster) -> None:
        made = trainer(sets, tmp_path / "run", group)
        found = gradients(made, 2)
        spans = {f"span.{name}": torch.tensor(span) for name, span in group.spans.items()}
        save_file(found | spans, tmp_path / f"{group.rank}.safetensors")

    one = gradients(trainer(sets, tmp_path / "one"), 2)
    assert together(size, tmp_path, work) == [0] * size
    parts = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(size)]
    split = 0
    for name, expected in one.items():
        spans = [Span(*part[f"span.{name}"].tolist()) for part in parts if f"span.{name}" in part]
        if not spans:
            found = parts[0][name]
            assert all(torch.equal(found, part[name]) for part in parts)
        else:
            held = [part[name] for part in parts if name in part and len(part[name])]
            split += len(held) > 1
            found = torch.cat(held)
            assert sum(span.last - span.first for span in spans) == len(found) == len(expected)
        torch.testing.assert_close(found, expected, rtol=2e-4, atol=1e-6, msg=name)
    assert split > 0


def test_any_number_goes_on_from_a_checkpoint_of_any_other(
    sets: dict[str, Dataset], tmp_path: Path
) -> None:
    """Two write, three read, two read again, one ends: each has the others' tensors, and the
    logits and decisions at the end are those of one process from start to end."""

    def until(step: int) -> Callable[[Cluster], None]:
        def work(group: Cluster) -> None:
            made = trainer(sets, tmp_path / "run", group)

            def stop(*_: Any) -> None:
                if made.progress.step > step:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                made.fit(stop)

        return work

    for size, step in ((2, 5), (3, 10)):
        assert together(size, tmp_path, until(step)) == [0] * size
        found = checkpoint.load(tmp_path / "run")
        assert found is not None
        assert found[1]["step"] == step
        files = {path.name for path in (tmp_path / "run").glob(f"checkpoint-{step}/shard-*")}
        assert files == {f"shard-{rank}.safetensors" for rank in range(size)}
    alone = trainer(sets, tmp_path / "alone")
    whole = alone.fit(quiet)
    resumed = trainer(sets, tmp_path / "run")
    ended = resumed.fit(quiet)
    assert (ended.step, ended.best_step) == (whole.step, whole.best_step)
    logits = [predict(made.network, sets["test"]) for made in (alone, resumed)]
    np.testing.assert_allclose(*logits, atol=2e-3)


def test_a_checkpoint_of_one_is_read_by_two(sets: dict[str, Dataset], tmp_path: Path) -> None:
    """Each gets its rows of the tables and their moments."""
    trainer(sets, tmp_path / "run").fit(quiet)
    found = checkpoint.load(tmp_path / "run")
    assert found is not None

    def work(group: Cluster) -> None:
        made = trainer(sets, tmp_path / "run", group)
        made._resume()
        again = checkpoint.load(tmp_path / "run", made._spans())
        assert again is not None
        assert again[0].keys() == found[0].keys()
        for name, value in found[0].items():
            span = made._spans().get(name)
            expected = value[span.first : span.last] if span else value
            assert torch.equal(again[0][name], expected)
        for name, value in made.network.state_dict().items():
            assert torch.equal(value, again[0][f"network.{name}"])

    assert together(2, tmp_path, work) == [0, 0]


def test_a_loss_that_is_no_number_stops_all_of_them(
    sets: dict[str, Dataset], tmp_path: Path
) -> None:
    """Each names step and batch, though one alone has the impression; the checkpoint is kept."""
    train = sets["train"]
    label = train.label.copy()
    _, at = train.batch(*train.plan(CONFIG.size, CONFIG.block, (0, 0))[7])
    label[at[0]] = np.nan
    broken = {**sets, "train": replace(train, label=label)}

    def work(group: Cluster) -> None:
        with pytest.raises(TrainingError, match=r"step 8: the loss is nan \(epoch 1, batch 8 of 1"):
            trainer(broken, tmp_path / "run", group).fit(quiet)

    assert together(2, tmp_path, work) == [0, 0]
    found = checkpoint.load(tmp_path / "run")
    assert found is not None
    assert found[1]["step"] == 5
    assert all(tensor.isfinite().all() for tensor in found[0].values())


def test_a_disk_that_is_full_for_one_stops_all_of_them(tmp_path: Path) -> None:
    """The one says why, the other that another did; the checkpoint before it is whole."""
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], check=False
    ).returncode:
        pytest.skip("no tmpfs can be mounted here, so no disk gets full")

    def work(group: Cluster) -> None:
        span = Span(group.rank, group.rank + 1, 2)
        rows = {"t": torch.full((1, 4), float(group.rank))}
        checkpoint.save(tmp_path, 1, rows, {"step": 1}, group, {"t": span})
        rows = {"t": torch.zeros(1, 400_000 if group.rank else 4)}
        error = checkpoint.CheckpointError if group.rank else ClusterError
        expected = "step 2 could not be written.*No space left" if group.rank else "another process"
        with pytest.raises(error, match=expected):
            checkpoint.save(tmp_path, 2, rows, {"step": 2}, group, {"t": span})

    try:
        assert together(2, tmp_path, work) == [0, 0]
        found = checkpoint.load(tmp_path)
        assert found is not None
        assert found[1] == {"step": 1}
        assert torch.equal(found[0]["t"][:, 0], torch.tensor([0.0, 1.0]))
        assert not (tmp_path / ".checkpoint").exists()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_without_torchrec_many_are_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process needs none of it."""
    monkeypatch.setattr(cluster, "find_spec", lambda _: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(ClusterError, match=r"2 processes: torchrec and fbgemm_gpu.*extra cluster"),
        cluster.join(),
    ):
        pass
    monkeypatch.setenv("WORLD_SIZE", "1")
    with cluster.join() as group:
        assert (group.size, group.leader) == (1, True)


def test_machines_that_could_not_start_again_do_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the variable that torchrun needs."""
    names = {"WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(ClusterError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"),
        cluster.join(),
    ):
        pass


def test_a_command_for_one_process_is_refused_to_many() -> None:
    """A wrong use, before any work."""
    found = CliRunner().invoke(app, ["evaluate", "--run", "x"], env={"WORLD_SIZE": "2"})
    assert found.exit_code == 2
    assert "expected the command fit" in found.output


def test_torchrun_with_a_worker_killed_ends_where_an_undisturbed_run_does(tmp_path: Path) -> None:
    """Bit for bit, from shards. It ranks as one process does, and its bundle passes the gate."""
    data = tmp_path / "data"
    World(users=100, items=200, categories=20, interests=3, seed=3).logs(100).write(data)

    def settings(out: str) -> tuple[Path, Path, str, int, list[str], int]:
        return data, tmp_path / out, "din", 0, SETTINGS, 1

    config, how = recipe.settings("synthetic", "din", SETTINGS)
    logs = Logs.read(data)
    encoder = learn_encoder(logs)
    sets = in_parts(logs, encoder, tmp_path / "shards", how.shard, {})
    assert len(sets["train"].lengths) == 3

    def work(group: Cluster) -> None:
        torch.manual_seed(0)
        sizes = {name: table.size for name, table in encoder.tables.items()}
        network = config.build(logs.schema, sizes)
        group.shard(network)
        Trainer(network, sets, how, 0, tmp_path / "two", group=group).fit(quiet)

    (tmp_path / "two").mkdir()
    assert together(2, tmp_path, work) == [0, 0]
    for out in ("one", "two"):  # what two have trained, one writes down
        fit(*settings(out), quiet)
    seen = _torchrun_and_kill(data, tmp_path / "killed")
    assert seen == sorted(seen)  # it did not begin anew
    assert len(seen) > 1
    killed, two, one = (Run(tmp_path / name).about() for name in ("killed", "two", "one"))
    weights = [load_file(tmp_path / name / "weights.safetensors") for name in ("killed", "two")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert killed["progress"]["evaluations"] == two["progress"]["evaluations"]
    for split in ("validation", "test"):
        found, expected = killed["metrics"][split], one["metrics"][split]
        assert abs(found["gauc"] - expected["gauc"]) <= 0.002
        assert abs(found["log_loss"] - expected["log_loss"]) <= 0.002
    _, version, worst = publish(Run(tmp_path / "killed"), tmp_path / "repository", quiet)
    assert version == 1
    assert worst <= 1e-5


def _torchrun_and_kill(data: Path, out: Path) -> list[int]:
    """Two workers, of which one is killed after the first checkpoint; the checkpoints seen."""
    command = ["--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    command += ["-m", "training", "fit", "--data", str(data), "--out", str(out), "--threads", "1"]
    for each in SETTINGS:
        command += ["--set", each]
    job = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *command],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()},
    )
    seen: list[int] = []
    killed = False
    while job.poll() is None:
        steps = [int(path.name.removeprefix("checkpoint-")) for path in out.glob("checkpoint-*")]
        if steps and max(steps) not in seen[-1:]:  # an older one goes after the new one is there
            seen.append(max(steps))
        if seen and not killed:
            os.kill(_worker(job.pid), signal.SIGKILL)
            killed = True
        time.sleep(0.01)
    _, told = job.communicate()
    assert job.returncode == 0, told
    assert killed
    return seen


def _worker(parent: int) -> int:
    """The worker of rank 1 among the children of torchrun."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    for child in children:
        if b"\0RANK=1\0" in Path(f"/proc/{child}/environ").read_bytes():
            return int(child)
    raise AssertionError(f"no worker of rank 1 among {children}")

"""The trainer: reproducible, killable, and sparse."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model.tensors import Tensors
from model.zoo import configure
from tests.kill import end, start
from training import checkpoint, metrics
from training.calibrate import Calibration, sigmoid
from training.dataset import Dataset, build, learn_encoder
from training.encoded import Data, in_parts
from training.trainer import FitConfig, Progress, Trainer, TrainingError, judged, predict, tally
from training.world import World

# 15 steps an epoch, an evaluation at each fifth one.
CONFIG = FitConfig(size=94, block=4, epochs=2, evaluations=3, patience=9, regularisation=0.1)
SMALL = {"dim": 4, "head": [8], "dropout": 0.1, "embedding_dropout": 0.1}
EVERY = 5


@pytest.fixture(scope="module")
def sets() -> dict[str, Dataset]:
    world = World(users=35, items=60, categories=8, interests=2, seed_clicks=6, seed=1)
    logs = world.logs(60)
    return build(logs, learn_encoder(logs))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Data]:
    """The same impressions in four shards."""
    world = World(users=35, items=60, categories=8, interests=2, seed_clicks=6, seed=1)
    logs = world.logs(60)
    return in_parts(logs, learn_encoder(logs), tmp_path_factory.mktemp("shards"), 600, {})


def trainer(
    sets: Mapping[str, Data],
    run: Path,
    seed: int = 0,
    config: FitConfig = CONFIG,
    model: str = "din",
    **options: Any,
) -> Trainer:
    run.mkdir(exist_ok=True)
    torch.manual_seed(seed)
    options = {**SMALL, **({"attention": [6]} if model == "din" else {}), **options}
    encoder = sets["train"].encoder
    sizes = {name: table.size for name, table in encoder.tables.items()}
    network = configure(model, options).build(encoder.schema, sizes)
    return Trainer(network, sets, config, seed, run)


def silent(stage: str, done: int, total: int, figures: dict[str, float]) -> None:
    pass


def trained(made: Trainer, report: Callable[..., None] = silent) -> tuple[bytes, Progress]:
    """The bytes of all weights at the end, and the progress."""
    progress = made.fit(report)
    return content(made.network.state_dict()), progress


def content(tensors: dict[str, Tensor]) -> bytes:
    return b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))


def test_the_seed_decides_every_bit(sets: dict[str, Dataset], tmp_path: Path) -> None:
    """The same seed gives the same weights, another one others."""
    one, progress = trained(trainer(sets, tmp_path / "one"))
    two, _ = trained(trainer(sets, tmp_path / "two"))
    other, _ = trained(trainer(sets, tmp_path / "other", seed=1))
    assert one == two != other
    assert progress.step == 30
    assert progress.impressions == 2 * len(sets["train"])
    assert [each["step"] for each in progress.evaluations or []] == [5, 10, 15, 20, 25, 30]


def test_a_killed_run_goes_on_to_the_same_weights(sets: dict[str, Dataset], tmp_path: Path) -> None:
    """Killed at any step, again and again: no more than one evaluation interval is lost."""
    expected, uninterrupted = trained(trainer(sets, tmp_path / "whole"))
    run = tmp_path / "killed"
    kills = [3, *sorted(np.random.default_rng(0).integers(6, 30, 2).tolist()), 30]
    for kill in kills:
        made, steps = trainer(sets, run), 0

        def report(stage: str, *_: Any, made: Trainer = made, kill: int = kill) -> None:
            if stage == "train" and made.progress.step == kill:
                os.kill(os.getpid(), signal.SIGKILL)

        assert end(start(lambda made=made, report=report: made.fit(report))) == -signal.SIGKILL
        found = checkpoint.load(run)
        steps = found[1]["step"] if found else 0
        assert kill - EVERY <= steps < kill
    first: list[int] = []
    made = trainer(sets, run)
    resumed, progress = trained(made, lambda *_: first.append(made.progress.step))
    assert first[0] == 26
    assert resumed == expected
    assert progress.evaluations == uninterrupted.evaluations
    assert progress.losses == uninterrupted.losses
    assert (progress.best_step, progress.impressions) == (
        uninterrupted.best_step,
        uninterrupted.impressions,
    )


def test_losses_are_thinned_to_means(
    sets: dict[str, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A point is the mean loss of the steps since the last; one stands at each evaluation."""
    monkeypatch.setattr("training.trainer.LOSSES", 10)  # 30 steps: every third
    seen: list[float] = []

    def report(stage: str, done: int, total: int, figures: dict[str, float]) -> None:
        if stage == "train":
            seen.append(figures["loss"])

    _, progress = trained(trainer(sets, tmp_path), report)
    ends = sorted({*range(3, 31, 3), *range(EVERY, 31, EVERY)})
    assert [step for step, _ in progress.losses] == ends
    for (step, loss), before in zip(progress.losses, [0, *ends], strict=False):
        assert loss == pytest.approx(np.mean(seen[before:step]), abs=1e-6)


def test_an_epoch_of_shards_has_each_impression_once(
    sets: dict[str, Dataset], shards: Mapping[str, Data], tmp_path: Path
) -> None:
    """Shard after shard, in another order in each epoch; as many steps as batches."""
    made = trainer(shards, tmp_path)
    assert len(shards["train"].lengths) == 4
    epochs: list[list[tuple[int, ...]]] = [[], []]
    for batch, label, _ in made._batches():
        epochs[made.progress.step // made.steps_per_epoch].append(
            tuple(sorted(batch.item[:, 0].tolist()))
        )
        assert len(label) == len(batch.item) <= 100
        made.progress.step += 1
    assert made.progress.step == made.steps == 2 * made.steps_per_epoch
    items = np.sort(sets["train"].item[:, 0]).tolist()
    for epoch in epochs:
        assert sorted(item for batch in epoch for item in batch) == items
    assert epochs[0] != epochs[1]


def test_a_training_on_shards_goes_on_to_the_same_weights(
    shards: Mapping[str, Data], tmp_path: Path
) -> None:
    """Stopped in the middle of a shard, at the end of an epoch, and in the next one."""
    config = replace(CONFIG, size=40)
    expected, whole = trained(trainer(shards, tmp_path / "whole", config=config))
    run = tmp_path / "stopped"
    for stop in (14, 37, 55):
        made = trainer(shards, run, config=config)

        def report(stage: str, *_: Any, made: Trainer = made, stop: int = stop) -> None:
            if stage == "train" and made.progress.step == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            made.fit(report)
    resumed, progress = trained(trainer(shards, run, config=config))
    assert resumed == expected
    assert progress.evaluations == whole.evaluations
    assert progress.impressions == 2 * len(shards["train"])


def test_shards_are_evaluated_as_one(
    sets: dict[str, Dataset], shards: Mapping[str, Data], tmp_path: Path
) -> None:
    """The metrics are those of the same impressions in memory, to rounding."""
    network = trainer(sets, tmp_path).network
    by = Calibration.identity(1)
    [one], [two] = (tally(network, data["validation"]).measure(by) for data in (sets, shards))
    assert one == pytest.approx(two, abs=1e-6)


def test_waiting_for_data_is_told(sets: dict[str, Dataset], tmp_path: Path) -> None:
    """It is part of the seconds, and its share is told at each step."""
    shares: list[float] = []

    def report(stage: str, done: int, total: int, figures: dict[str, float]) -> None:
        if stage == "train":
            shares.append(figures["waited"])

    progress = trainer(sets, tmp_path, config=replace(CONFIG, epochs=0.4)).fit(report)
    assert 0 < progress.waited < progress.seconds
    assert all(0 < share < 1 for share in shares)
    assert shares[-1] == pytest.approx(progress.waited / progress.seconds)


def test_a_run_killed_after_its_last_step_is_done(sets: dict[str, Dataset], tmp_path: Path) -> None:
    """It takes the best weights from the checkpoint without another step."""
    expected, _ = trained(trainer(sets, tmp_path))
    reported: list[str] = []
    again, progress = trained(trainer(sets, tmp_path), lambda stage, *_: reported.append(stage))
    assert again == expected
    assert progress.done
    assert reported == []


def heads(made: Trainer) -> tuple[list[bytes], Progress]:
    """The bytes of the head at the start and after each step, and the progress."""
    found = [content(made.network.head.state_dict())]

    def report(stage: str, *_: Any) -> None:
        if stage == "train":
            found.append(content(made.network.head.state_dict()))

    return found, made.fit(report)


def test_the_first_share_of_the_steps_trains_what_goes_before(
    sets: dict[str, Dataset], tmp_path: Path
) -> None:
    """An FNN's head is untouched while its FM trains, and nothing is kept of that time; then
    everything moves."""
    made = trainer(sets, tmp_path, model="fnn", pretraining=0.4)
    table = made.network.embeddings.weights()["item_id"]
    start = table.detach().clone()
    found, progress = heads(made)
    assert [one == two for one, two in pairwise(found)] == [True] * 12 + [False] * 18
    assert not torch.equal(table, start)
    assert [each["step"] for each in progress.evaluations or []] == [15, 20, 25, 30]


def test_a_warm_network_is_beyond_what_goes_before(
    sets: dict[str, Dataset], tmp_path: Path
) -> None:
    """Its head goes on from the first step."""
    made = trainer(sets, tmp_path, model="fnn", pretraining=0.4)
    made.warm = True
    found, _ = heads(made)
    assert not any(one == two for one, two in pairwise(found))


def test_a_run_killed_before_its_head_is_trained_goes_on(
    sets: dict[str, Dataset], tmp_path: Path
) -> None:
    """Stopped in the first stage: the same weights as one that was not."""
    expected, _ = trained(trainer(sets, tmp_path / "whole", model="fnn", pretraining=0.4))
    made = trainer(sets, tmp_path / "killed", model="fnn", pretraining=0.4)

    def report(stage: str, *_: Any) -> None:
        if made.progress.step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made.fit(report)
    again = trainer(sets, tmp_path / "killed", model="fnn", pretraining=0.4)
    resumed, _ = trained(again)
    assert resumed == expected


@pytest.mark.parametrize(("epochs", "steps"), [(0.4, 6), (1.4, 21), (2, 30)])
def test_epochs_may_be_parts_of_one(
    sets: dict[str, Dataset], tmp_path: Path, epochs: float, steps: int
) -> None:
    """Training ends at the nearest step, after an evaluation, and its rate falls to zero there."""
    made = trainer(sets, tmp_path, config=replace(CONFIG, epochs=epochs))
    _, progress = trained(made)
    assert (progress.step, progress.done) == (steps, True)
    assert progress.evaluations is not None
    assert progress.evaluations[-1]["step"] == steps
    assert made.dense.param_groups[0]["lr"] <= made.config.rate / steps * 1.01


def test_training_stops_when_validation_gets_no_better(
    sets: dict[str, Dataset], tmp_path: Path
) -> None:
    """Weights that do not move: ``patience`` evaluations after the first, which stays the best."""
    still = replace(CONFIG, rate=1e-30, embedding_rate=1e-30, regularisation=0.0, patience=2)
    _, progress = trained(trainer(sets, tmp_path, config=still, model="base"))
    assert progress.step == 3 * EVERY
    assert progress.best_step == EVERY
    assert progress.done


def test_the_best_weights_are_kept(sets: dict[str, Dataset], tmp_path: Path) -> None:
    """The network that is left has the best validation GAUC of all evaluations."""
    made = trainer(sets, tmp_path, config=replace(CONFIG, rate=0.05, embedding_rate=0.05))
    _, progress = trained(made)
    gaucs = [each["score"] for each in progress.evaluations or [] if each["by"] == "gauc"]
    assert progress.best_score == max(gaucs) > min(gaucs)
    data = sets["validation"]
    logit = predict(made.network, data)
    found = metrics.gauc(data.user, data.label[:, 0], logit[:, 0])
    assert found == pytest.approx(progress.best_score, abs=1e-12)
    (loss,) = (e["loss"] for e in progress.evaluations or [] if e["step"] == progress.best_step)
    assert loss == pytest.approx(metrics.log_loss(data.label[:, 0], sigmoid(logit)[:, 0]), abs=1e-6)


def test_a_loss_that_is_no_number_stops_the_run(sets: dict[str, Dataset], tmp_path: Path) -> None:
    """The step is named and the last checkpoint is still there."""
    train = sets["train"]
    label = train.label.copy()
    _, at = train.batch(*train.plan(CONFIG.size, CONFIG.block, (0, 0))[7])
    label[at[0]] = np.nan
    broken = {**sets, "train": replace(train, label=label)}
    with pytest.raises(TrainingError, match="step 8: the loss is nan"):
        trainer(broken, tmp_path).fit(silent)
    found = checkpoint.load(tmp_path)
    assert found is not None
    assert found[1]["step"] == 5
    assert all(tensor.isfinite().all() for tensor in found[0].values())


def test_the_loss_told_is_that_of_the_labels(sets: dict[str, Dataset], tmp_path: Path) -> None:
    """An auxiliary loss trains the network, but curves of different models stay comparable."""
    told: list[list[float]] = []
    for weight in (0.0, 1.0):
        losses: list[float] = []
        told.append(losses)

        def keep(
            stage: str, done: int, total: int, figures: dict[str, float], to: list[float] = losses
        ) -> None:
            if stage == "train":
                to.append(figures["loss"])

        config = replace(CONFIG, epochs=1, evaluations=1)
        run = tmp_path / str(weight)
        made = trainer(sets, run, config=config, model="dien", dropout=0.0, auxiliary=weight)
        made.fit(keep)
    assert told[0][0] == told[1][0]
    assert told[0][1:] != told[1][1:]


def test_no_step_touches_rows_outside_its_batch(sets: dict[str, Dataset], tmp_path: Path) -> None:
    """Rows that do not occur stay bit for bit, their optimiser state zero; the others move."""
    few = {**sets, "train": sets["train"].take(np.arange(30))}
    config = replace(CONFIG, size=30, epochs=3, evaluations=1)
    made = trainer(few, tmp_path, config=config, embedding_dropout=0.0)
    counts = few["train"].occurrences()
    weights = made.network.embeddings.weights()
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    made.fit(silent)
    for name, weight in weights.items():
        absent = torch.from_numpy(counts[name] == 0)
        absent[0] = True
        state = made.sparse.state[weight]
        assert absent.sum() > 1
        assert torch.equal(weight[absent], before[name][absent])
        for moment in (state["exp_avg"], state["exp_avg_sq"]):
            assert not moment[absent].any()
            assert moment[~absent].any(1).all()


@pytest.mark.parametrize("options", [{}, {"attention_activation": "dice"}])
def test_batches_without_any_behaviour_train(
    sets: dict[str, Dataset], tmp_path: Path, options: dict[str, Any]
) -> None:
    """A log of newcomers, and a last batch of one impression, are no reason to stop."""
    alone = {k: replace(v, stop=v.start).take(np.arange(33)) for k, v in sets.items()}
    made = trainer(alone, tmp_path, config=replace(CONFIG, size=32, block=1), **options)
    progress = made.fit(silent)
    assert progress.step == 4
    assert all(value.isfinite().all() for value in made.network.state_dict().values())


def test_users_of_one_impression_are_ranked_by_auc(
    sets: dict[str, Dataset], tmp_path: Path
) -> None:
    """Where no user has both labels there is no GAUC; the AUC picks the best weights."""
    data = sets["validation"]
    _, first = np.unique(data.user, return_index=True)
    label = (np.arange(len(first)) % 2).astype(np.float32)[:, None]
    single = replace(data.take(first), label=label)
    made = trainer({**sets, "validation": single}, tmp_path)
    progress = made.fit(silent)
    found = metrics.auc(single.label[:, 0], predict(made.network, single)[:, 0])
    assert {each["by"] for each in progress.evaluations or []} == {"auc"}
    assert progress.best_score == pytest.approx(found, abs=1e-12)
    assert progress.best_score == max(each["score"] for each in progress.evaluations or [])


@pytest.mark.parametrize(
    ("per_task", "expected"),
    [
        ([{"gauc": 0.6, "auc": 0.7}, {"gauc": 0.5, "auc": 0.9}], ("gauc", 0.55)),
        ([{"gauc": 0.6, "auc": 0.7}, {"log_loss": 9.0}], ("gauc", 0.6)),
        ([{"auc": 0.7}, {"gauc": 0.6, "auc": 0.9}], ("gauc", 0.6)),
        ([{"auc": 0.7, "log_loss": 0.1}, {"log_loss": 9.0}], ("auc", 0.7)),
        ([{"log_loss": 0.1}, {"log_loss": 0.3}], ("log_loss", -0.2)),
    ],
)
def test_a_task_that_cannot_be_ranked_does_not_choose_the_weights(
    per_task: list[dict[str, float]], expected: tuple[str, float]
) -> None:
    """Those with a GAUC do, else those with an AUC; the log loss only where none has either."""
    by, score = judged(per_task)
    assert (by, score) == (expected[0], pytest.approx(expected[1]))


@pytest.mark.parametrize("epochs", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("evaluations", [1, 2, 3, 4, 7])
def test_evaluations_are_even_and_the_last_is_the_end(
    sets: dict[str, Dataset], tmp_path: Path, evaluations: int, epochs: float
) -> None:
    """As many as were asked for, none of them doubled at the end."""
    made = trainer(sets, tmp_path, config=replace(CONFIG, evaluations=evaluations, epochs=epochs))
    due = [step for step in range(1, made.steps + 1) if made._due(step)]
    assert due[-1] == made.steps
    assert len(due) == math.ceil(evaluations * epochs)
    apart = np.diff([0, *due])
    assert apart.max() - apart[:-1].min(initial=apart.max()) <= 1


def test_attention_pays_in_a_world_of_several_interests(tmp_path: Path) -> None:
    """DIN ranks better than the same network without histories, and than chance."""
    world = World(users=120, items=200, categories=20, interests=3, seed_clicks=10, seed=3)
    logs = world.logs(110)
    sets = build(logs, learn_encoder(logs))
    blind = {name: replace(part, start=part.stop) for name, part in sets.items()}
    config = FitConfig(size=256, epochs=3, rate=0.01, embedding_rate=0.02, evaluations=2)
    gauc = {}
    for name, data in (("seeing", sets), ("blind", blind)):
        made = trainer(
            data, tmp_path / name, config=config, dim=8, dropout=0.0, embedding_dropout=0.0
        )
        made.fit(silent)
        test = data["test"]
        score = predict(made.network, test)[:, 0]
        gauc[name] = metrics.gauc(test.user, test.label[:, 0], score)
    assert gauc["seeing"] > gauc["blind"] + 0.03


@pytest.fixture(scope="module")
def two_tasks() -> dict[str, Dataset]:
    world = World(users=35, items=60, categories=8, interests=2, seed=1, conversions=True)
    logs = world.logs(60)
    return build(logs, learn_encoder(logs))


@pytest.mark.parametrize("weights", [(), (1, 3), (0.5, 0.1)])
def test_the_loss_weighs_tasks_by_their_ratio(
    two_tasks: dict[str, Dataset], tmp_path: Path, weights: tuple[float, ...]
) -> None:
    """The mean over impressions of each task's log loss, weighed; alike where nothing is said."""
    config = replace(CONFIG, task_weights=weights)
    made = trainer(two_tasks, tmp_path, config=config, dropout=0.0, embedding_dropout=0.0)
    train = two_tasks["train"]
    batch, at = train.batch(*train.plan(config.size, config.block, (0, 0))[0])
    with torch.no_grad():
        p = torch.sigmoid(made.network.train()(Tensors.of(batch))[0]).numpy()
    by_task = metrics.losses(train.label[at], p).mean(0)
    told: list[float] = []

    def first_step(stage: str, done: int, total: int, figures: dict[str, float]) -> None:
        told.append(figures["loss"])
        raise StopIteration

    with pytest.raises(StopIteration):
        made.fit(first_step)
    assert abs(by_task[0] - by_task[1]) > 1e-3
    expected = np.average(by_task, weights=weights or None)
    assert told == [pytest.approx(expected, abs=1e-6)]


def test_the_best_weights_are_those_of_the_best_mean_over_tasks(
    two_tasks: dict[str, Dataset], tmp_path: Path
) -> None:
    """GAUC of clicks and of conversions count alike, whatever their weights in the loss."""
    config = replace(CONFIG, rate=0.05, embedding_rate=0.05, task_weights=(1.0, 9.0))
    made = trainer(two_tasks, tmp_path, config=config, model="mmoe", expert=[4])
    progress = made.fit(silent)
    data = two_tasks["validation"]
    logit = predict(made.network, data)
    of_task = [metrics.gauc(data.user, data.label[:, task], logit[:, task]) for task in range(2)]
    assert progress.best_score == pytest.approx(np.mean(of_task), abs=1e-12)
    gaucs = [each["score"] for each in progress.evaluations or [] if each["by"] == "gauc"]
    assert progress.best_score == max(gaucs) > min(gaucs)

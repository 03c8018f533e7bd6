"""The trainer: fits a network on a dataset, stops early, and can be killed at any time.

Adam in both halves: dense for the layers, sparse for the embedding tables and the gates of
behaviour fields, where a step touches only the rows that occur in it. The rate rises over the
first steps and falls to zero at the last. The weights that rank validation best (`judged`) are
kept, the last ones where there is nothing to validate with. Several processes do each step
together, as one: see `training.group`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from model.network import Network
from model.regularisation import mini_batch_aware
from model.tensors import Tensors
from training import checkpoint
from training.calibrate import Calibration
from training.dataset import Dataset
from training.encoded import Data
from training.group import Group, Span
from training.tally import Tally

Report = Callable[[str, int, int, dict[str, float]], None]
EVALUATION_SIZE = 512  # 4096 takes 2.5 times as long on MovieLens-1M: pairs no longer fit the cache
EVALUATION_BLOCK = 64
LOSSES = 300  # points of the training loss that a run keeps, and one more at each evaluation


class TrainingError(RuntimeError):
    """Training that can't go on, and where it stopped."""


@dataclass(frozen=True)
class FitConfig:
    """How to train. Sizes count impressions, epochs may be parts of one; rates are Adam's.

    Logs of more events than ``shard`` are trained on shard by shard: see `training.encoded`.
    ``task_weights`` is what each task's loss counts, in the schema's order; only their ratios
    matter, and when empty all count alike.
    """

    size: int = 512
    block: int = 8
    epochs: float = 2.0
    rate: float = 2e-3
    embedding_rate: float = 2e-3
    regularisation: float = 0.0
    weight_decay: float = 0.0
    warm_up: float = 0.05
    evaluations: int = 4
    patience: int = 4
    negatives_kept: float = 1.0
    shard: int = 4_000_000
    task_weights: tuple[float, ...] = ()

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> FitConfig:
        """From what TOML or JSON gives, where tuples are lists."""
        found: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**found)


@dataclass
class Progress:
    """Where training stands; what a checkpoint keeps beside tensors.

    ``waited`` are those of the ``seconds`` in which no step was made since its batch was not there.
    ``losses`` are [step, mean training loss of the steps since the last of them].
    ``evaluations`` have each its step, its `judged` score and what that goes by, and the log loss.
    """

    step: int = 0
    best_step: int = 0
    best_score: float = -1.0
    evaluations: list[dict[str, Any]] | None = None
    losses: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0
    waited: float = 0.0
    impressions: int = 0
    done: bool = False


class Trainer:
    """One fit of one network; a ``warm`` one's first weights are among those that may be kept.

    Of a ``group`` of several processes each has a trainer, with its share of the tables.
    """

    def __init__(
        self,
        network: Network,
        data: Mapping[str, Data],
        config: FitConfig,
        seed: int,
        run: Path,
        warm: bool = False,
        group: Group | None = None,
    ) -> None:
        self.warm, self.group = warm, group or Group()
        self.network, self.data, self.config, self.seed, self.run = network, data, config, seed, run
        tables = list(network.embeddings.weights().values())
        sparse = {id(p) for p in network.sparse().values()}
        others = [p for p in network.sparse().values() if all(p is not of for of in tables)]
        rest = [p for p in network.parameters() if id(p) not in sparse]
        groups = [(tables, config.embedding_rate), (others, config.rate)]
        self.sparse = torch.optim.SparseAdam(
            [{"params": of, "lr": rate, "initial_lr": rate} for of, rate in groups if of]
        )
        self.dense = torch.optim.AdamW(
            [{"params": rest, "initial_lr": config.rate}],
            lr=config.rate,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.counts = {
            name: torch.from_numpy(count) for name, count in data["train"].occurrences().items()
        }
        weights = torch.tensor(config.task_weights, dtype=torch.float32)
        self.task_weights = weights / weights.mean() if config.task_weights else None
        held = {id(network.sparse()[name]): span for name, span in self.group.spans.items()}
        for name, weight in network.embeddings.weights().items():
            if span := held.get(id(weight)):
                self.counts[name] = self.counts[name][span.first : span.last]
        self.best: dict[str, Tensor] = {}
        self.progress = Progress(evaluations=[])
        # As many batches as `Dataset.plan` makes of each part.
        self.steps_of_part = [ceil(length / config.size) for length in data["train"].lengths]
        self.steps_per_epoch = sum(self.steps_of_part)
        self.steps = max(1, round(self.steps_per_epoch * config.epochs))

    def fit(self, report: Report) -> Progress:
        """Train to the end, or on from the last checkpoint; leaves the best weights in the network.

        ``report(stage, done, total, figures)`` is called at each step. Raises `TrainingError`.
        """
        self._resume()
        stretch = ceil(self.steps / LOSSES)
        at, recent = self.progress, list[float]()
        if self.warm and not at.evaluations:
            self._evaluate(report)
        begin = time.perf_counter()
        for batch, label, size in self._batches():
            if at.done:
                break
            at.waited += time.perf_counter() - begin
            loss = self._step(batch, label, size)
            recent.append(loss)
            at.seconds += time.perf_counter() - begin
            report(
                "train",
                at.impressions,
                round(len(self.data["train"]) * self.config.epochs),
                {"loss": loss, "waited": at.waited / at.seconds},
            )
            evaluated = self._due(at.step)
            if evaluated or at.step % stretch == 0:  # a checkpoint then holds all losses so far
                at.losses.append((at.step, round(sum(recent) / len(recent), 6)))
                recent.clear()
            if evaluated:
                if not self._pretrains():  # else there is nothing yet to keep, nor to stop for
                    self._evaluate(report)
                self._save()
            begin = time.perf_counter()
        if self.best:
            self.network.load_state_dict(self.best)
        return at

    def each_step(self) -> Iterator[int]:
        """Train step by step, without evaluations and checkpoints: the impressions of each."""
        for batch, label, size in self._batches():
            self._step(batch, label, size)
            yield size

    def moments(self) -> dict[str, Tensor]:
        """What both optimisers know of each parameter, by its name: ``NAME.step``,
        ``NAME.exp_avg`` and ``NAME.exp_avg_sq``; nothing of one that never had a gradient."""
        names: dict[Tensor, str] = {p: name for name, p in self.network.named_parameters()}
        return {
            f"{names[weight]}.{key}": torch.as_tensor(value)
            for optimiser in (self.sparse, self.dense)
            for weight, state in optimiser.state.items()
            for key, value in state.items()
        }

    def remember(self, moments: Mapping[str, Tensor]) -> None:
        """Go on from the `moments` of another training, of the same shapes."""
        weights = dict(self.network.named_parameters())
        tables = {id(p) for group in self.sparse.param_groups for p in group["params"]}
        for key, value in moments.items():
            name, _, what = key.rpartition(".")
            of_table = id(weights[name]) in tables
            state = (self.sparse if of_table else self.dense).state[weights[name]]
            state[what] = int(value) if of_table and what == "step" else value.clone()

    def _batches(self) -> Iterator[tuple[Tensors, Tensor, int]]:
        """What is left of the epochs: this process's share of each batch, and how many impressions
        the batch has in all; each epoch's order follows from the seed alone."""
        train, of_part = self.data["train"], np.asarray(self.steps_of_part)
        for epoch in range(self.progress.step // self.steps_per_epoch, ceil(self.config.epochs)):
            first = self.progress.step - epoch * self.steps_per_epoch
            last = self.steps - epoch * self.steps_per_epoch
            seed = (self.seed, epoch)
            order = np.arange(len(of_part))
            if len(order) > 1:
                np.random.default_rng(seed).shuffle(order)
            end = np.cumsum(of_part[order])
            begin = end - of_part[order]
            here = (end > first) & (begin < last) & (end > begin)
            order, begin = order[here], begin[here]
            parts = train.parts(order.tolist())
            for number, before, part in zip(order, begin, parts, strict=True):
                of = (*seed, int(number)) if len(of_part) > 1 else seed
                plan = part.plan(self.config.size, self.config.block, of)
                for blocks in plan[max(first - before, 0) : last - before]:
                    size = int((blocks[1] - blocks[0]).sum())
                    batch, at = part.batch(*self.group.share(*blocks))
                    yield Tensors.of(batch), torch.from_numpy(part.label[at]), size

    def _step(self, batch: Tensors, label: Tensor, size: int) -> float:
        """Train on a batch of ``size`` impressions, of which this process has these. Returns the
        labels' loss, which models with and without a loss of their own have alike."""
        at, network = self.progress, self.network
        self._set_rates()
        self.group.draw(self.seed, at.step)
        network.train()
        fetched = self.group.fetch(batch)
        logit = network.pretrain(fetched) if self._pretrains() else network(fetched)[0]
        loss = of_labels = logit.sum()  # an empty share has no mean
        if len(label):
            entropy = nn.functional.binary_cross_entropy_with_logits
            share = len(label) / size
            of_labels = entropy(logit, label, self.task_weights) * share
            loss = of_labels + network.auxiliary() * share
        value = self.group.sum(float(loss.detach()))
        if not np.isfinite(value):
            epoch, within = divmod(at.step, self.steps_per_epoch)
            place = f"epoch {epoch + 1}, batch {within + 1} of {self.steps_per_epoch}"
            raise TrainingError(
                f"step {at.step + 1}: the loss is {value} ({place}); last checkpoint kept"
            )
        self.sparse.zero_grad()
        self.dense.zero_grad()
        loss.backward()
        self.group.reduce(p for each in self.dense.param_groups for p in each["params"])
        if self.config.regularisation:
            for name, weight in network.embeddings.weights().items():
                mini_batch_aware(weight, self.counts[name], self.config.regularisation)
        self.sparse.step()
        self.dense.step()
        at.step += 1
        at.impressions += size
        return self.group.sum(float(of_labels.detach()))

    def _due(self, step: int) -> bool:
        """Whether to evaluate after a step: evenly over each epoch, and at the end."""
        now, before = (
            n * self.config.evaluations // self.steps_per_epoch for n in (step, step - 1)
        )
        return now > before or step == self.steps

    def _pretrains(self) -> bool:
        """Whether the next step is of the stage before, which a warm network is beyond."""
        return not self.warm and self.progress.step < self.network.pretraining * self.steps

    def _set_rates(self) -> None:
        share = self.progress.step / self.steps
        factor = min((self.progress.step + 1) / (self.config.warm_up * self.steps + 1), 1 - share)
        for group in (*self.sparse.param_groups, *self.dense.param_groups):
            group["lr"] = group["initial_lr"] * factor

    def _evaluate(self, report: Report) -> None:
        at, data = self.progress, self.data["validation"]
        if not len(data):
            at.best_step, at.done = at.step, at.step >= self.steps
            return
        found = tally(
            self.network,
            data,
            lambda n: report("validate", n, len(data), {}),
            group=self.group,
        )
        if not found.finite:
            raise TrainingError(f"step {at.step}: a logit is not finite; last checkpoint kept")
        per_task = found.measure(Calibration.identity(found.tasks))
        by, score = judged(per_task)
        loss = float(np.mean([each["log_loss"] for each in per_task]))
        assert at.evaluations is not None
        at.evaluations.append({"step": at.step, "by": by, "score": score, "loss": loss})
        if score > at.best_score or not self.best:
            at.best_score, at.best_step = score, at.step
            self.best = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        since = sum(each["step"] > at.best_step for each in at.evaluations)
        at.done = at.step >= self.steps or since >= self.config.patience

    def _save(self) -> None:
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        for name in ("sparse", "dense"):
            for index, state in getattr(self, name).state_dict()["state"].items():
                for key, value in state.items():
                    tensors[f"{name}.{index}.{key}"] = torch.as_tensor(value)
        tensors["generator"] = torch.get_rng_state()
        step, state = self.progress.step, asdict(self.progress)
        checkpoint.save(self.run, step, tensors, state, self.group, self._spans())

    def _spans(self) -> dict[str, Span]:
        """The rows that this process has of each tensor of a checkpoint, where that is not all."""
        found = {}
        tables = [p for each in self.sparse.param_groups for p in each["params"]]
        index = {id(weight): at for at, weight in enumerate(tables)}
        for name, weight in self.network.sparse().items():
            if name in self.group.spans:
                moments = (f"sparse.{index[id(weight)]}.{key}" for key in ("exp_avg", "exp_avg_sq"))
                for each in (f"network.{name}", f"best.{name}", *moments):
                    found[each] = self.group.spans[name]
        return found

    def _resume(self) -> None:
        found = checkpoint.load(self.run, self._spans())
        if found is None:
            return
        tensors, state = found
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = tensor
        self.network.load_state_dict(parts["network"])
        self.best = parts.get("best", {})  # none before the first evaluation
        for name in ("sparse", "dense"):
            optimiser = getattr(self, name)
            whole = optimiser.state_dict()
            states: dict[int, dict[str, Any]] = {}
            for key, tensor in parts.get(name, {}).items():
                index, _, field = key.partition(".")
                plain = name == "sparse" and field == "step"
                states.setdefault(int(index), {})[field] = int(tensor) if plain else tensor
            optimiser.load_state_dict({**whole, "state": states})
        torch.set_rng_state(parts["generator"][""])
        losses = [(step, loss) for step, loss in state.pop("losses", [])]
        self.progress = Progress(**state, losses=losses)


def judged(per_task: Sequence[Mapping[str, float]]) -> tuple[str, float]:
    """By what weights are chosen, and its value, of which more is better.

    GAUC where any task has one, the mean over those; else AUC likewise, as where no user has both
    labels; else ``log_loss``, negative.
    """
    for name in ("gauc", "auc"):
        if known := [each[name] for each in per_task if name in each]:
            return name, float(np.mean(known))
    return "log_loss", -float(np.mean([each["log_loss"] for each in per_task]))


def predict(
    network: nn.Module,
    data: Dataset,
    report: Callable[[int], None] = lambda done: None,
    group: Group | None = None,
) -> npt.NDArray[np.float32]:
    """Logits [I, tasks] of every impression of a dataset, uncalibrated."""
    group = group or Group()
    network.eval()
    logits = np.zeros(data.label.shape, np.float32)
    done = 0
    with torch.inference_mode():
        for begin, end in data.plan(EVALUATION_SIZE * group.size, EVALUATION_BLOCK, None):
            batch, at = data.batch(*group.share(begin, end))
            logits[at] = network(group.fetch(Tensors.of(batch)))[0].numpy()
            done += int((end - begin).sum())
            report(done)
    return group.merge(logits)


def tally(
    network: nn.Module,
    data: Data,
    report: Callable[[int], None] = lambda done: None,
    see: Callable[[Dataset, npt.NDArray[np.float32]], None] = lambda part, logits: None,
    group: Group | None = None,
) -> Tally:
    """What metrics need to know of every impression of a dataset, by uncalibrated logits, which
    ``see`` is shown part by part."""
    found, done = Tally(len(data.schema.tasks)), 0
    numbers = [number for number, length in enumerate(data.lengths) if length]
    for part in data.parts(numbers):

        def told(n: int, before: int = done) -> None:
            report(before + n)

        logits = predict(network, part, told, group)
        found.add(part.user, part.label, logits)
        see(part, logits)
        done += len(part)
    return found

"""The gate: whether a candidate may take the place of the current version, and why not.

Both are measured on the same newest impressions, which neither was trained nor calibrated on. A
candidate passes when it is better, its log loss being lower, and when even the worse end of the
intervals is good enough. Where an interval is too wide to tell it is refused too, and the reasons
say so.

Labels may be wrong in a way that a candidate learns, and is then judged by. So they are held
against the current version as well: they are not believed when by them it ranks worse than chance,
or far worse than when it was published, or when there are suddenly far more or fewer clicks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

from training.intervals import Comparison, Evidence, Figure, Floats, Sampling, compare
from training.option import OptionError

NEAR = 0.55  # a ranking below this, whose interval holds 0.5, is taken for that of chance
Status = Literal["passed", "refused", "too_few"]


class RuleError(OptionError):
    """A rule that does not exist, or is no number."""


@dataclass(frozen=True)
class Rules:
    """What is good enough. A ranking is GAUC, or AUC where too few users have both labels."""

    impressions: int = 500
    """Fewer than this can't tell anything."""
    positives: int = 50
    ranking: float = 0.01
    """How much lower than the current one the ranking may be at the interval's lower end."""
    log_loss: float = 0.02
    """How much higher the log loss may be at the upper end, as a share of the current one's."""
    gain: float = 0.0
    """The log loss must be lower by more than this share, in value; where this is below 0 it may be
    higher by as much."""
    calibration_low: float = 0.9
    calibration_high: float = 1.1
    """The band of mean predicted / observed. Refused when the whole interval is out of it; too few
    to tell when the value is out of it though the interval reaches in, or when the interval is
    wider than the band."""
    slice_impressions: int = 200
    slice_ranking: float = 0.05
    """A slice collapses when its ranking is lower by more than this at the interval's upper end."""
    slice_log_loss: float = 0.1
    """Or its log loss higher by more than this share at the lower end."""
    slice_calibration_low: float = 0.8
    slice_calibration_high: float = 1.25
    """Or its whole interval of mean predicted / observed is out of this band."""
    drop: float = 0.15
    """How much lower the current one may rank these impressions than those it was published on."""
    rate: float = 2.0
    """How many times more, or fewer, clicks an impression may have here than before."""


def rules(given: Sequence[str]) -> Rules:
    """The rules, ``key=value`` over the defaults. Raises `RuleError`."""
    values: dict[str, float] = {}
    for each in given:
        key, _, text = each.partition("=")
        default = getattr(Rules(), key, None)
        try:
            values[key] = type(default)(text) if isinstance(default, (int, float)) else math.nan
        except ValueError:
            values[key] = math.nan
        if not (-1 if key == "gain" else 0) <= values[key] < math.inf:
            known = ", ".join(name.name for name in fields(Rules))
            expected = f"key=number, the key one of {known}"
            raise RuleError(f"--rule {key}: expected {expected}")
    return Rules(**values)  # type: ignore[arg-type] # whole numbers where they are expected


@dataclass(frozen=True)
class Verdict:
    """What the gate says. ``reasons`` are sentences with figures; none where it passes."""

    status: Status
    reasons: tuple[str, ...]
    overall: Comparison | None = None
    slices: Mapping[str, Comparison] = field(default_factory=dict)
    rules: Rules = Rules()

    @property
    def passed(self) -> bool:
        return self.status == "passed"


def judge(
    evidence: Evidence,
    rules: Rules,
    others: Mapping[str, Evidence] | None = None,
    sampling: Sampling | None = None,
) -> Verdict:
    """Whether the candidate may be published, by the evidence of the first task.

    The ``others``, by name, are held to what a slice is: they must not collapse.
    """
    if reason := too_few(evidence.label, rules):
        return Verdict("too_few", (reason,), rules=rules)
    sampling = sampling or Sampling()
    overall = compare(evidence, sampling)
    parts = {name: evidence.part(mask) for name, mask in evidence.slices.items()} | dict(
        others or {}
    )
    slices = {name: compare(part, sampling) for name, part in parts.items() if len(part.label)}
    wrong = [*_data(evidence, overall, rules), *_worse(overall, rules)]
    for name, found in slices.items():
        if found.impressions >= rules.slice_impressions:
            wrong += _collapsed(name, found, rules)
    unclear = list(_unclear(overall, rules))
    status: Status = "refused" if wrong else "too_few" if unclear else "passed"
    return Verdict(status, (*wrong, *unclear), overall, slices, rules)


def too_few(label: Floats, rules: Rules) -> str:
    """Why impressions with these labels [I] can't tell anything; empty where they may."""
    positives = int(label.sum())
    both = min(positives, len(label) - positives)
    if len(label) >= rules.impressions and both >= rules.positives:
        return ""
    return (
        f"too few impressions to tell: {len(label):,}, {positives:,} of them positive; needed are "
        f"{rules.impressions:,}, {rules.positives:,} of either label"
    )


def _data(evidence: Evidence, overall: Comparison, rules: Rules) -> Iterator[str]:
    """Why the labels are not believed."""
    rate, before = float(evidence.label.mean()), evidence.rate_before
    if before and not 1 / rules.rate <= rate / before <= rules.rate:
        yield (
            f"the labels are doubtful: {rate:.4f} of these impressions are positive, "
            f"{before:.4f} of those before"
        )
    name, promised = overall.ranked_by.upper(), evidence.promised.get(overall.ranked_by)
    ranking = overall.current.get("ranking")
    if ranking and ranking.high < 0.5:
        yield (
            f"the labels are doubtful: by them the current version ranks worse than chance, "
            f"{name} {ranking}"
        )
    elif ranking and promised and ranking.high < promised - rules.drop:
        yield (
            f"the labels are doubtful: by them the current version's {name} is {ranking}, "
            f"and was {promised:.4f} when it was published"
        )


def _worse(found: Comparison, rules: Rules) -> Iterator[str]:
    """Why the candidate is refused for certain."""
    name, own = found.ranked_by.upper(), found.candidate
    if (ranking := own.get("ranking")) and ranking.low <= 0.5 and ranking.value < NEAR:
        yield f"{name} {ranking} is not above that of chance, 0.5"
    low, high = rules.calibration_low, rules.calibration_high
    if (ratio := own.get("calibration")) and _outside(ratio, low, high):
        yield f"calibration: mean predicted / observed is {ratio}, not within {low} to {high}"
    if (change := found.change.get("ranking")) and change.low < -rules.ranking and change.high < 0:
        yield (
            f"{name} is lower than the current version's by {_less(change)}; at most "
            f"{rules.ranking} may be lost, at the worse end"
        )
    if (change := found.change.get("log_loss")) and change.high > rules.log_loss and change.low > 0:
        yield (
            f"log loss is higher than the current version's by {_share(change)}; at most "
            f"{rules.log_loss:.0%} may be, at the worse end"
        )
    elif change and change.value >= -rules.gain:
        two = found.current["log_loss"].value
        yield (
            f"no better than the current version: log loss is {own['log_loss'].value:.5f}, "
            f"that one's is {two:.5f}"
        )


def _unclear(found: Comparison, rules: Rules) -> Iterator[str]:
    """Why nothing can be told."""
    few, name = "too few impressions to tell: ", found.ranked_by.upper()
    ranking = found.candidate.get("ranking")
    if ranking is None:
        yield f"{few}{name} is not defined"
    elif ranking.low <= 0.5 and ranking.value >= NEAR:
        yield f"{few}{name} {ranking} may be that of chance, 0.5"
    low, high = rules.calibration_low, rules.calibration_high
    ratio = found.candidate.get("calibration")
    if ratio and not _outside(ratio, low, high):
        wide = ratio.high - ratio.low > high - low
        if wide or not low <= ratio.value <= high:
            yield f"{few}mean predicted / observed {ratio} may lie outside {low} to {high}"
    change = found.change.get("ranking")
    if change and change.low < -rules.ranking and change.high >= 0:
        yield (
            f"{few}{name} may be lower than the current version's by {-change.low:.4f}; "
            f"at most {rules.ranking} may be lost"
        )
    change = found.change.get("log_loss")
    if change and change.high > rules.log_loss and change.low <= 0:
        yield (
            f"{few}log loss may be higher than the current version's by {change.high:.1%}; "
            f"at most {rules.log_loss:.0%} may be"
        )


def _collapsed(name: str, found: Comparison, rules: Rules) -> Iterator[str]:
    ranking, loss = found.change.get("ranking"), found.change.get("log_loss")
    if ranking and ranking.high < -rules.slice_ranking:
        yield f"{name}: {found.ranked_by.upper()} is lower by {_less(ranking)}"
    if loss and loss.low > rules.slice_log_loss:
        yield f"{name}: log loss is higher by {_share(loss)}"
    low, high = rules.slice_calibration_low, rules.slice_calibration_high
    if (ratio := found.candidate.get("calibration")) and _outside(ratio, low, high):
        yield f"{name}: mean predicted / observed is {ratio}, not within {low} to {high}"


def _outside(figure: Figure, low: float, high: float) -> bool:
    """Whether the whole interval is."""
    return figure.low > high or figure.high < low


def _less(change: Figure) -> str:
    return f"{-change.value:.4f} ({-change.high:.4f} to {-change.low:.4f})"


def _share(change: Figure) -> str:
    return f"{change.value:.1%} ({change.low:.1%} to {change.high:.1%})"

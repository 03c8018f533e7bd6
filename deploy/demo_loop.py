"""The closed loop, shown: live traffic, a taste that shifts, a model that follows and one that does
not.

A synthetic world is played as live traffic against two services that share one Redis. The first
has the loop: a collector writes what happened to Parquet, each simulated day ends with a retrain,
and what passes the gate is served the next day. The second serves the first model for ever. Both
score the same candidates for the same users; the page that is shown is half the loop's best and
half drawn at random, and the AUC is that of the clicks on the drawn half, which favours neither.
Regret is what a model's own best page falls short of the best there is, in clicks expected, by the
world's true probabilities. One day's logs are poisoned: a broken tracker counts places from the
bottom of the page, so that clicks stand at the wrong items.

Everything is under ``var/loop``, which is emptied first. The environment: LOOP_DAYS, LOOP_SHIFT and
LOOP_POISON (days, from 0), LOOP_USERS, LOOP_ROUNDS (visits of each user a day), LOOP_VAR (another
folder, which may hold nothing but an earlier run). The last line on stdout is one JSON object with
what was measured.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import polars as pl
from redis import Redis
from rich.console import Console
from rich.table import Table

from deploy import loop_report
from deploy.demo import Steps, told
from deploy.processes import (
    ROOT,
    Client,
    StepError,
    background,
    free_port,
    redis,
    run,
    run_told,
    service,
)
from deploy.traffic import Traffic
from model.contract.store import PARTITIONS, log_key
from terminal.progress import Update, progress
from training import metrics
from training.world import EXAMINATION, PAGE, World

CANDIDATES = 30
EXPLORED = PAGE // 2
CONNECTIONS = 6
PUBLISHED, REFUSED = 0, 10
MORNING, NIGHT = 6 * 3600, 22 * 3600
# Connections outlast a night's retraining, and a busy machine degrades nothing.
PATIENT: dict[str, Any] = {
    "timeout_ms": 30_000,
    "store_timeout_ms": 5_000,
    "event_timeout_ms": 30_000,
    "keep_alive_seconds": 3600,
}
# A small world gives few steps of the recipe's size; the retraining takes these over.
SETTINGS = ("size=64", "epochs=1")
SHIFT = (0.3, 2.5)
_EVENTS = 1000
_MADE = {"logs", "repository", "never", "run", "loop.png", "report.html"}
_LOGGED = {"collect.log", "service-repository.log", "service-never.log"}


@dataclass(frozen=True)
class Plan:
    """How long, how many, and what happens when."""

    days: int
    shift: int
    poison: int
    users: int
    rounds: int

    @classmethod
    def of_environment(cls) -> Plan:
        """Raises `StepError`."""
        usual = {"days": 8, "shift": 2, "poison": 5, "users": 500, "rounds": 4}
        found = {}
        for name, number in usual.items():
            variable, least = f"LOOP_{name.upper()}", 0 if name in {"shift", "poison"} else 1
            given = os.environ.get(variable) or str(number)
            if not (given.isascii() and given.isdigit() and int(given) >= least):
                raise StepError(f"{variable}: expected a whole number from {least} on")
            found[name] = int(given)
        return cls(**found)


@dataclass
class Arm:
    """One service, and how it did: per day the AUC, and clicks lost of 100 pages."""

    name: str
    clients: SimpleQueue[Client] = field(default_factory=SimpleQueue)
    auc: list[float] = field(default_factory=list)
    regret: list[float] = field(default_factory=list)

    def connect(self, port: int) -> None:
        for _ in range(CONNECTIONS):
            self.clients.put(Client(port))

    def close(self) -> None:
        while not self.clients.empty():
            self.clients.get().close()

    def post(self, path: str, body: bytes, request_id: str | None = None) -> Any:
        client = self.clients.get()
        try:
            return json.loads(client.post(path, body, request_id))
        finally:
            self.clients.put(client)


@dataclass(frozen=True)
class Day:
    """A day: the AUC of the true probabilities, and what came of its retrain: the version served
    after it, and the job's own line."""

    day: date
    auc: float
    version: int
    verdict: str
    reasons: Sequence[str]
    seconds: float


def main() -> int:
    """Run the demo; 0, or 1 when a step failed."""
    var = Path(os.environ.get("LOOP_VAR") or ROOT / "var" / "loop").resolve()
    return told(lambda console: demo(console, Plan.of_environment(), var))


def demo(console: Console, plan: Plan, var: Path) -> dict[str, Any]:
    """All steps in order; what was measured. Raises `StepError`."""
    started = time.perf_counter()
    steps = Steps(console, 3 + plan.days)
    _clear(var)
    logs, repository, never = var / "logs", var / "repository", var / "never"
    world = World(users=plan.users, items=200, categories=20, interests=4, bias=-3.0, strength=4.0)
    with steps.step("A world and its past: logs to learn the first model from"):
        past = world.logs(impressions_per_user=200)
        past.write(logs / "base")
        traffic = Traffic.after(world, past, seed=1)
        console.print(f"{plan.users} users, {world.items} items, {len(past.events):,} events")
    with steps.step("The first model"):
        first = var / "run"
        how = [each for option in SETTINGS for each in ("--set", option)]
        run("training", "fit", "--data", logs / "base", "--out", first, "--threads", "1", *how)
        run("training", "export", "--run", first, "--repository", repository)
        shutil.copytree(repository, never)
    loop, frozen = Arm("the loop"), Arm("never retrained")
    days: list[Day] = []
    begin = datetime.now(UTC).date() - timedelta(days=plan.days)
    with ExitStack() as stack:
        url = stack.enter_context(redis())
        where = ["--data", logs / "base", "--repository", repository]
        run("service", "load-histories", *where, "--redis-url", url)
        for arm, served, share in ((loop, repository, 1.0), (frozen, never, 0.0)):
            port, log = free_port(), var / f"service-{served.name}.log"
            stack.enter_context(
                service(served, "synthetic", url, port, log, log_share=share, **PATIENT)
            )
            arm.connect(port)
            stack.callback(arm.close)
        collecting = ["--redis-url", url, "--logs", logs, "--every", "1"]
        stack.enter_context(background("training", "collect", *collecting, log=var / "collect.log"))
        pool = stack.enter_context(ThreadPoolExecutor(CONNECTIONS))
        for number in range(plan.days):
            day = begin + timedelta(days=number)
            happens = {plan.shift: ": taste shifts", plan.poison: ": its logs are poisoned"}
            with steps.step(f"Day {number}{happens.get(number, '')}"):
                if number == plan.shift:
                    traffic.shift(*SHIFT)
                with progress(console) as update:
                    best = play(traffic, day, plan, (loop, frozen), pool, update)
                collected(url)
                if poisoned := number == plan.poison:
                    moved = poison(logs, day)
                    console.print(f"{moved:,} clicks of the day now stand at another item")
                days.append(Day(day, best, **retrain(repository, logs, day, loop, poisoned)))
                tell(console, days[-1], loop, frozen)
    with steps.step("Report"):
        table(console, days, (loop, frozen))
        report = loop_report.write(var, days, (loop, frozen), plan)
        console.print(str(report.relative_to(ROOT) if report.is_relative_to(ROOT) else report))
    seconds = time.perf_counter() - started
    console.print(f"All of it took {seconds:.0f} s.")
    return figures(plan, days, (loop, frozen), seconds)


def _clear(var: Path) -> None:
    """Remove an earlier run. Raises `StepError` where anything else would go with it."""
    try:
        others = {path.name for path in var.iterdir()} - _MADE - _LOGGED if var.exists() else ()
    except NotADirectoryError:
        others = {"a file"}
    if others:
        raise StepError(f"LOOP_VAR: {var}: expected an earlier run and nothing else there")
    shutil.rmtree(var, ignore_errors=True)


def figures(
    plan: Plan, days: Sequence[Day], arms: tuple[Arm, Arm], seconds: float
) -> dict[str, Any]:
    """What was measured, for JSON."""
    return {
        "days": [{**asdict(each), "day": str(each.day)} for each in days],
        "arms": {arm.name: {"auc": arm.auc, "regret": arm.regret} for arm in arms},
        "plan": asdict(plan),
        "seconds": round(seconds, 1),
    }


def play(
    traffic: Traffic,
    day: date,
    plan: Plan,
    arms: tuple[Arm, Arm],
    pool: ThreadPoolExecutor,
    update: Update,
) -> float:
    """A day's visits: both arms score them, the first arm's page is shown, and what came of it is
    reported. Puts AUC and regret of the day into the arms; the AUC of the true probabilities."""
    loop = arms[0]
    midnight = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
    users, done, part = np.arange(plan.users), 0, (NIGHT - MORNING) // plan.rounds
    total = plan.users * plan.rounds
    labels, best = list[Any](), list[Any]()
    lost = {arm.name: list[float]() for arm in arms}
    scores: dict[str, list[Any]] = {arm.name: [] for arm in arms}
    for visit in range(plan.rounds):
        ts = midnight + MORNING + visit * part + users * part // plan.users
        offered = traffic.offer(CANDIDATES)
        asked = [
            {"user_id": str(user), "item_ids": offered[user].astype(str).tolist()}
            for user in users.tolist()
        ]
        bodies = [json.dumps({**each, "context": {"position": "0"}}).encode() for each in asked]
        names = [f"{day}-{visit}-{user}" for user in users.tolist()]
        found = {}
        for arm in arms:
            answers = []
            for answer in pool.map(arm.post, ["/score/columns"] * len(bodies), bodies, names):
                answers.append(answer["ctr"])
                done += 1
                update("score", done, total * len(arms), {})
            found[arm.name] = np.array(answers)
        truth = traffic.probability(users, offered)
        for arm in arms:
            lost[arm.name].append(_lost(truth, found[arm.name]))
        place = _page(found[loop.name], traffic.generator)
        shown = np.take_along_axis(offered, place, axis=1)
        click = traffic.click(users, shown)
        report_events(loop, pool, ts, names, shown, click)
        drawn = place[:, EXPLORED:]
        labels.append(click[:, EXPLORED:].ravel())
        best.append(np.take_along_axis(truth, drawn, axis=1).ravel())
        for arm in arms:
            scores[arm.name].append(np.take_along_axis(found[arm.name], drawn, axis=1).ravel())
    clicked = np.concatenate(labels)
    for arm in arms:
        arm.auc.append(metrics.auc(clicked, np.concatenate(scores[arm.name])))
        arm.regret.append(100 * float(np.mean(lost[arm.name])))
    return metrics.auc(clicked, np.concatenate(best))


def _page(score: np.ndarray[Any, Any], generator: np.random.Generator) -> np.ndarray[Any, Any]:
    """Columns of the page (U, PAGE): the best half by score, then as many drawn from all others.

    Which are drawn does not depend on the score: they are drawn first.
    """
    order = np.argsort(-score, axis=1, kind="stable")
    drawn = generator.permuted(order, axis=1)[:, :EXPLORED]
    left = np.where((order[:, :, None] == drawn[:, None, :]).any(axis=2), len(order[0]), 0)
    rest = np.take_along_axis(order, np.argsort(left, axis=1, kind="stable"), axis=1)
    return np.concatenate([rest[:, : PAGE - EXPLORED], drawn], axis=1)


def _lost(truth: np.ndarray[Any, Any], score: np.ndarray[Any, Any]) -> float:
    """Clicks that a model's own page is expected to lose, mean over users."""
    examined = EXAMINATION ** np.arange(PAGE)
    best = -np.sort(-truth, axis=1)[:, :PAGE]
    own = np.take_along_axis(truth, np.argsort(-score, axis=1, kind="stable")[:, :PAGE], axis=1)
    return float(((best - own) @ examined).mean())


def report_events(
    arm: Arm,
    pool: ThreadPoolExecutor,
    ts: np.ndarray[Any, Any],
    names: Sequence[str],
    shown: np.ndarray[Any, Any],
    click: np.ndarray[Any, Any],
) -> None:
    """POST /events: what every user was shown (U, PAGE) at ts (U,), and what was then clicked."""
    events = []
    for user, name in enumerate(names):
        for place, item in enumerate(shown[user].tolist()):
            about = {"user_id": str(user), "item_id": str(item), "request_id": name}
            when = int(ts[user])
            events.append({**about, "action": "impression", "ts": when, "position": str(place)})
            if click[user, place]:
                events.append({**about, "action": "click", "ts": when + 1 + place})
    parts = [events[at : at + _EVENTS] for at in range(0, len(events), _EVENTS)]
    bodies = [json.dumps({"events": part}).encode() for part in parts]
    for answer in pool.map(arm.post, ["/events"] * len(bodies), bodies):
        if answer["refused"] or answer["duplicate"]:
            raise StepError(f"events were refused: {json.dumps(answer)[:500]}")


def collected(url: str) -> None:
    """Wait until the collector has all that was logged. Raises `StepError`."""
    deadline = time.monotonic() + 60
    with Redis.from_url(url) as client:
        while any(client.xlen(log_key("din", each)) for each in range(PARTITIONS)):
            if time.monotonic() > deadline:
                raise StepError("the collector did not collect the day's log within 60 s")
            time.sleep(0.2)


def poison(logs: Path, day: date) -> int:
    """Move each click of a day's collected events to the item at the same place counted from the
    bottom of its page; how many."""
    files = sorted((logs / "events" / f"date={day}").glob("*.parquet"))
    frames = [pl.read_parquet(file) for file in files]
    whole = pl.concat(frames)
    place = pl.col("fields").str.json_path_match("$.position").cast(pl.Int64)
    shown = whole.filter(pl.col("action") == "impression").with_columns(place=place)
    pages = dict(shown.group_by("request_id").agg(pl.col("item_id").sort_by("place")).iter_rows())
    moved = 0
    for file, frame in zip(files, frames, strict=True):
        items = frame["item_id"].to_list()
        for at, row in enumerate(frame.iter_rows(named=True)):
            if row["action"] == "click":
                page = pages[row["request_id"]]
                items[at] = page[-1 - page.index(row["item_id"])]
                moved += 1
        frame.with_columns(pl.Series("item_id", items)).write_parquet(file)
    return moved


def retrain(repository: Path, logs: Path, day: date, loop: Arm, poisoned: bool) -> dict[str, Any]:
    """The nightly job, and the wait until the service has taken what it published.

    Raises `StepError`, also where the gate lets a ``poisoned`` day through.
    """
    started = time.perf_counter()
    days = ["--from", str(day), "--to", str(day)]
    where = ["--repository", repository, "--logs", logs]
    said = run_told("training", "retrain", *where, *days, fine=(PUBLISHED, REFUSED))
    version = _served(loop)
    if poisoned and said["status"] == "published":
        raise StepError("the gate published what was learnt from the poisoned day")
    if said["status"] == "published":
        deadline = time.monotonic() + 30
        while version != said["version"]:
            if time.monotonic() > deadline:
                raise StepError(f"version {said['version']} was not taken into service")
            time.sleep(0.1)
            version = _served(loop)
    seconds = time.perf_counter() - started
    return {
        "version": version,
        "verdict": said["status"],
        "reasons": said["reasons"],
        "seconds": round(seconds, 1),
    }


def _served(arm: Arm) -> int:
    client = arm.clients.get()
    try:
        return int(client.get("/readyz")["version"])
    finally:
        arm.clients.put(client)


def tell(console: Console, day: Day, loop: Arm, frozen: Arm) -> None:
    """A day in two lines."""
    console.print(
        f"live AUC {loop.auc[-1]:.3f} with the loop, {frozen.auc[-1]:.3f} never retrained, "
        f"{day.auc:.3f} at best; clicks lost of 100 pages {loop.regret[-1]:.0f} and "
        f"{frozen.regret[-1]:.0f}"
    )
    console.print(f"retrain: {day.verdict}; version {day.version} is served")
    for reason in day.reasons:
        console.print(f"  {reason}", markup=False)


def table(console: Console, days: Sequence[Day], arms: tuple[Arm, Arm]) -> None:
    """All days."""
    found = Table("day", title="The loop against never retrained", title_justify="left")
    for name in ("AUC", "never", "best", "lost", "never"):
        found.add_column(name, justify="right")
    found.add_column("retrain that night")
    loop, frozen = arms
    for at, day in enumerate(days):
        shown = [f"{value:.3f}" for value in (loop.auc[at], frozen.auc[at], day.auc)]
        shown += [f"{arm.regret[at]:.1f}" for arm in arms]
        found.add_row(str(at), *shown, day.verdict)
    console.print(found)


if __name__ == "__main__":
    sys.exit(main())

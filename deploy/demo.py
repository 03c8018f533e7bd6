"""The demo: from raw logs to a served score, through the commands a user would type.

Everything is under ``var/``: data, runs/demo-N, repository. The environment says what to use:

    DATA, TEST_USERS   the archive of MovieLens-1M, and a file with the ids of its test users
    DEMO_USERS         a synthetic world of so many users instead, nothing is downloaded
    DEMO_EPOCHS        epochs of training; MovieLens-1M: 1, to save time (the recipe has 3)
    DEMO_REQUESTS      requests whose latency is measured
    DEMO_VAR           another folder than var

The last line on stdout is one JSON object with what was measured.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from deploy import movielens
from deploy.processes import (
    ROOT,
    Client,
    StepError,
    free_port,
    interruptible,
    redis,
    run,
    service,
)
from deploy.shop import Shop
from terminal.progress import Update, progress

CANDIDATES = 200
WARM_UP = 30
SHOWN = 10
READY_SECONDS = 5
START = "until ready (s)"


@dataclass(frozen=True)
class Source:
    """Which logs are used: what prepare is told, and the film titles, if any."""

    name: str
    options: tuple[str, ...]
    epochs: str | None = None  # None: the recipe's
    titles: dict[str, str] = field(default_factory=dict)


class Steps:
    """Names each step and its time."""

    def __init__(self, console: Console, count: int) -> None:
        self._console, self._count = console, count
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        number = len(self.seconds) + 1
        self._console.print(f"\n[bold]{number}/{self._count} {what}[/]", highlight=False)
        started = time.perf_counter()
        yield
        self.seconds[what] = seconds = time.perf_counter() - started
        self._console.print(f"[green]done in {seconds:.1f} s[/]", highlight=False)


def main() -> int:
    """Run the demo; 0, or 1 when a step failed."""
    var = Path(os.environ.get("DEMO_VAR") or ROOT / "var").resolve()
    return told(lambda console: demo(console, var))


def told(demo: Callable[[Console], dict[str, Any]]) -> int:
    """Run a demo to its end and print what it measured; its exit status."""
    interruptible()
    console = Console(highlight=False)
    try:
        figures = demo(console)
    except StepError as error:
        console.print(f"\nThe demo stopped: {error}", style="red", markup=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("\nThe demo was interrupted; all its processes have ended.", style="red")
        return 130
    print(json.dumps(figures), flush=True)
    return 0


def demo(console: Console, var: Path) -> dict[str, Any]:
    """All steps in order; what was measured. Raises `StepError`."""
    steps = Steps(console, 10)
    started = time.perf_counter()
    data, repository = var / "data", var / "repository"

    with steps.step("Data"):
        source = choose(console, data)
    with steps.step("Prepare: events, items and users as Parquet"):
        run("training", "prepare", *source.options, "--out", data)
    folder = next_run(var / "runs")
    with steps.step("Train a DIN"):
        epochs = os.environ.get("DEMO_EPOCHS") or source.epochs
        if epochs:
            console.print(f"epochs: {epochs}, instead of the recipe's (DEMO_EPOCHS=n for others)")
        # Where something else runs too, two threads that wait for each other are slower than one.
        options = ["--threads", "1", *(["--set", f"epochs={epochs}"] if epochs else [])]
        run("training", "fit", "--data", data, "--model", "din", "--out", folder, *options)
    with steps.step("Evaluate on the test impressions"):
        predictions = folder / "predictions.parquet"
        run("training", "evaluate", "--run", folder, "--predictions", predictions)
    with steps.step("Export to ONNX, check, publish"):
        run("training", "export", "--run", folder, "--repository", repository)
    schema = tomllib.loads((data / "schema.toml").read_text())
    name = schema["name"]

    with redis() as url:
        with steps.step("Load the histories into Redis"):
            where = ["--data", data, "--repository", repository, "--name", name]
            run("service", "load-histories", *where, "--redis-url", url)
        port = free_port()
        log = var / "service.log"
        with ExitStack() as running:
            with steps.step("Start the service"), progress(console) as update:
                began = time.perf_counter()
                waited = partial(tell_start, update)
                process = running.enter_context(service(repository, name, url, port, log, waited))
                ready = time.perf_counter() - began
                update(START, round(ready), round(ready), {})
            client = running.enter_context(closing(Client(port)))
            shop = Shop.open(data, schema, source.titles)
            with steps.step("POST /score"):
                show_score(console, client, shop)
            with steps.step(f"Latency of POST /score with {CANDIDATES} candidates"):
                p50, p99 = latency(console, client, shop)
            memory = resident_mib(process.pid)

    trained = json.loads((folder / "run.json").read_text())
    test = trained["metrics"]["test"]
    figures = {
        "auc": round(test["auc"], 5),
        "gauc": round(test["gauc"], 5),
        "samples_per_s": round(trained["samples_per_s"], 1),
        "p50_ms": round(p50, 3),
        "p99_ms": round(p99, 3),
        "repository": shown(repository),
        "data": source.name,
    }
    with steps.step("Figures"):
        show_figures(console, figures, steps, ready, memory)
    console.print(f"\nAll of it took {time.perf_counter() - started:.0f} s. To keep it running:")
    console.print("    make serve\n", style="bold")
    return figures


def choose(console: Console, folder: Path) -> Source:
    """The archive that was given, else the downloaded one, else a synthetic world; says which."""
    given, users = os.environ.get("DATA"), os.environ.get("DEMO_USERS")
    if given:
        path = Path(given).expanduser().resolve()
        if not path.is_file():
            raise StepError(f"DATA={given}: no such file")
        console.print(f"MovieLens-1M from {given}, which DATA names", markup=False)
        return _movielens(path)
    if users:
        console.print(f"a synthetic world of {users} users, which DEMO_USERS asks for")
        return Source("synthetic", ("--source", "synthetic", "--users", users))
    try:
        path = movielens.download(folder, console)
    except movielens.DownloadError as error:
        console.print(
            f"[yellow]MovieLens-1M can't be downloaded[/] ({error}), so this demo uses a "
            "synthetic world.\nFor real data: make demo DATA=path/to/ml-1m.zip"
        )
        return Source("synthetic", ("--source", "synthetic"))
    console.print(f"MovieLens-1M from its owner's site: {shown(path)}")
    return _movielens(path)


def _movielens(path: Path) -> Source:
    options = ["--source", "movielens-1m", "--path", str(path)]
    users = os.environ.get("TEST_USERS")
    if users:
        options += ["--test-users", str(Path(users).expanduser().resolve())]
    try:
        return Source("movielens-1m", tuple(options), "1", movielens.titles(path))
    except movielens.ArchiveError as error:
        raise StepError(f"{path}: {error}") from None


def next_run(folder: Path) -> Path:
    """A folder for a new run: demo-1, demo-2, ..."""
    number = 1
    while (folder / f"demo-{number}").exists():
        number += 1
    return folder / f"demo-{number}"


def shown(path: Path) -> str:
    """A path as a reader at the root of the project would write it."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def tell_start(update: Update, seconds: float) -> None:
    """The service is to be ready within `READY_SECONDS`; what is late is always about to be."""
    so_far = int(seconds)
    update(START, so_far, max(READY_SECONDS, so_far + 1), {})


def show_score(console: Console, client: Client, shop: Shop) -> None:
    """One request for a user with a good history, and why each candidate got its score."""
    body = shop.request(SHOWN)
    console.print(f"POST /score {json.dumps(body)}", markup=False, soft_wrap=True)
    answer = client.ask(**body)
    if answer["degraded"] or not answer["history_length"]:
        raise StepError(f"the service scored without history: {json.dumps(answer)}")
    labels = shop.labels()
    short = {**labels, **shop.titles}
    table = Table(
        title=f"user {body['user_id']}, {answer['history_length']} behaviours looked at; "
        f"{answer['model']} version {answer['version']}",
        title_justify="left",
    )
    for column in ("", "candidate", "probability", "because of (weight)"):
        table.add_column(column, justify="right" if column == "probability" else "left")
    ranked = sorted(answer["scores"], key=lambda score: -score["ctr"])
    for rank, score in enumerate(ranked, 1):
        because = "\n".join(
            f"{short.get(each['item_id'], each['item_id'])} ({each['weight']:+.3f})"
            for each in score["because"]
        )
        item = labels.get(score["item_id"], score["item_id"])
        table.add_row(str(rank), _plain(item), f"{score['ctr']:.4f}", _plain(because))
    console.print(table)


def _plain(text: str) -> str:
    """Text in which brackets are no markup."""
    return text.replace("[", r"\[")


def latency(console: Console, client: Client, shop: Shop) -> tuple[float, float]:
    """Milliseconds of the median and the 99th percentile, as this client sees them, one by one."""
    count = int(os.environ.get("DEMO_REQUESTS") or 500)
    generator = np.random.default_rng(1)
    items = shop.items["item_id"].to_list()
    bodies = []
    for user in generator.choice(shop.counts["user_id"].to_list(), count + WARM_UP).tolist():
        candidates = generator.choice(items, CANDIDATES).tolist()
        asked = {"user_id": user, "candidates": candidates, "context": shop.context}
        bodies.append(json.dumps(asked).encode())
    taken = []
    with progress(console) as update:
        for body in bodies:
            started = time.perf_counter()
            client.score(body)
            taken.append(1000 * (time.perf_counter() - started))
            if len(taken) % 10 == 0 or len(taken) == len(bodies):
                update("requests", len(taken), len(bodies), {})
    p50, p99 = np.percentile(taken[WARM_UP:], [50, 99])
    return float(p50), float(p99)


def resident_mib(process: int) -> float | None:
    """Resident memory; None where the system does not say."""
    try:
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    except OSError:
        return None
    return int(found[1]) / 1024 if found else None


def show_figures(
    console: Console, figures: dict[str, Any], steps: Steps, ready: float, memory: float | None
) -> None:
    """What was measured, and where the time went."""
    table = Table("figure", "value", "what it is")
    what = f"ms, POST /score, {CANDIDATES} candidates, one request at a time, seen by the client"
    table.add_row("AUC", f"{figures['auc']:.4f}", "on the test impressions")
    table.add_row("GAUC", f"{figures['gauc']:.4f}", "AUC per user, weighted by impressions")
    table.add_row("samples/s", f"{figures['samples_per_s']:,.0f}", "impressions trained a second")
    table.add_row("p50", f"{figures['p50_ms']:.2f}", what)
    table.add_row("p99", f"{figures['p99_ms']:.2f}", what)
    table.add_row("ready", f"{ready:.1f}", "s from the start of the service's process to /readyz")
    if memory is not None:
        table.add_row("memory", f"{memory:.0f}", "MiB resident in it after these requests")
    console.print(table)
    times = Table("step", "seconds", title="Time of the steps", title_justify="left")
    for name, seconds in steps.seconds.items():
        times.add_row(name, f"{seconds:.1f}")
    console.print(times)


if __name__ == "__main__":
    sys.exit(main())

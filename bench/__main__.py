"""The yardsticks' command: ours against the frozen naive reference (see bench/README.md)."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from bench import (
    against,
    forms,
    graph,
    memory,
    plots,
    profile,
    quality,
    rows,
    serving,
    swaps,
    tables,
    training,
)
from bench.graph import Exported
from bench.measure import Machine, load, machine, pin
from bench.servers import Cores, ServerError
from deploy.processes import StepError
from model.layers import Activation
from terminal.commands import Commands
from terminal.progress import progress
from training.logs import Logs

HEADLINE = (100, 500)
SHAPES = [(t, n) for t in (10, 50, 100, 500) for n in (50, 200, 500, 2000)]
UNITS: tuple[Activation, ...] = ("sigmoid", "dice")

Quick = Annotated[bool, typer.Option("--quick", help="The figures that matter, less exactly.")]
Out = Annotated[Path, typer.Option(help="Folder for JSON and plots.")]
OUT = Path("bench/out")

app = Commands("Measure ours against the frozen naive reference.")


@app.command("graph")
def graph_command(quick: Quick = False, out: Out = OUT) -> None:
    """The scoring graph: ms per call by behaviours and candidates."""
    Bench.start(out, quick).graph({})


@app.command("training")
def training_command(quick: Quick = False, out: Out = OUT) -> None:
    """Training steps: samples/s."""
    Bench.start(out, quick).training()


@app.command("quality")
def quality_command(
    data: Annotated[str, typer.Option(help="synthetic, or real data that is there.")] = "synthetic",
    seeds: Annotated[int, typer.Option(min=1, help="Each trains both.")] = 5,
    epochs: Annotated[float, typer.Option(min=0.0, help="May be a part of one.")] = 1.0,
    out: Out = OUT,
) -> None:
    """Training to its end: test GAUC and samples/s of both."""
    known = training.sources(2000)
    if data not in known:
        raise typer.BadParameter(f"--data: expected one of {', '.join(known)}, found {data}")
    Bench.start(out, quick=False).quality(data, known[data], seeds, epochs)


@app.command("service")
def service_command(quick: Quick = False, out: Out = OUT) -> None:
    """The service: requests/s, latencies, CPU time per request."""
    bench = Bench.start(out, quick)
    bench.service(bench.exported("sigmoid"))


@app.command("all")
def all_command(quick: Quick = False, out: Out = OUT) -> None:
    """All three."""
    bench = Bench.start(out, quick)
    sigmoid = bench.exported("sigmoid")
    bench.graph({"sigmoid": sigmoid})
    bench.training()
    bench.service(sigmoid)


@app.command("memory")
def memory_command(
    requests: Annotated[int, typer.Option(help="After the warm-up.")] = 1_000_000,
    candidates: Annotated[int, typer.Option(help="Per request.")] = 20,
    out: Out = OUT,
) -> None:
    """The service's memory after many requests."""
    bench = Bench.start(out, quick=False)
    bench.memory(bench.exported("sigmoid"), requests, candidates)


@app.command("swaps")
def swaps_command(
    swaps: Annotated[int, typer.Option(help="Of the stable version.")] = 100,
    out: Out = OUT,
) -> None:
    """Swaps of a version under load: failures, latencies during a swap, memory after all."""
    bench = Bench.start(out, quick=False)
    bench.swaps(bench.exported("sigmoid"), swaps)


@app.command("profile")
def profile_command(
    form: Annotated[Literal["rows", "columns"], typer.Option(help="Of the requests.")] = "columns",
    requests: Annotated[int, typer.Option(help="Profiled.")] = 500,
    out: Out = OUT,
) -> None:
    """Where a request's time goes beside the model, by module."""
    bench = Bench.start(out, quick=False)
    bench.profile(bench.exported("sigmoid"), form, requests)


@app.command("against")
def against_command(
    other: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="A checkout.")],
    turns: Annotated[int, typer.Option(help="Of each form.")] = 9,
    requests: Annotated[int, typer.Option(help="In a turn.")] = 60,
    out: Out = OUT,
) -> None:
    """This service's CPU time per request against that of another checkout."""
    bench = Bench.start(out, quick=False)
    bench.against(bench.exported("sigmoid"), other.resolve(), turns, requests)


@app.command("rows")
def rows_command(
    impressions: Annotated[int, typer.Option(min=200, help="Of a synthetic world.")] = 10_000_000,
    minutes: Annotated[float, typer.Option(help="Preparing and fitting each stop then.")] = 10.0,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, as in training fit.")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Folder to keep the logs in; the run goes on there too.")
    ] = None,
    out: Out = OUT,
) -> None:
    """Training's memory by the number of rows."""
    bench = Bench.start(out, quick=False)
    bench.rows(impressions, minutes * 60, ["epochs=1", *(setting or [])], keep)


@dataclass(frozen=True)
class Bench:
    """One run of the command: where it prints and writes, on which machine."""

    out: Path
    quick: bool
    console: Console
    cores: Cores
    machine: Machine

    @classmethod
    def start(cls, out: Path, quick: bool) -> Bench:
        """Pin this process to one core and look at it."""
        console = Console(width=None if Console().is_terminal else 130)
        cores = Cores.found()
        pin()
        found = machine()
        console.print(str(found), highlight=False)
        return cls(out, quick, console, cores, found)

    def exported(self, unit: Activation) -> Exported:
        with self.console.status(f"exporting the {unit} unit twice"):
            return graph.exported(unit)

    def graph(self, exported: Mapping[Activation, Exported]) -> None:
        """``exported`` are units exported before."""
        shapes = [HEADLINE] if self.quick else SHAPES
        rows = []
        for unit in UNITS:
            pair = (exported.get(unit) or self.exported(unit)).opened()
            with self.console.status(f"running the {unit} unit"):
                found = graph.measure(pair, shapes, 9, self.machine.sgemm_gflops * 1e9)
            rows += [{"unit": unit, **row} for row in found]
        self.console.print(tables.graph(rows))
        self._write("graph", rows=rows)
        plots.graph(rows, self.out / "graph.png")

    def training(self) -> None:
        rows = []
        sources = training.sources(200 if self.quick else 2000, large=not self.quick)
        for name, read in sources.items():
            with self.console.status(f"reading and training on {name}"):
                sets = training.prepare(read())
                row = training.measure(sets, 5 if self.quick else 15, 0.5 if self.quick else 1.0)
            rows.append({"data": name, **row})
        self.console.print(tables.training(rows))
        self._write("training", rows=rows)

    def quality(self, data: str, read: Callable[[], Logs], seeds: int, epochs: float) -> None:
        with progress(self.console) as update:
            sets = training.prepare(read())
            rows, over = quality.measure(sets, seeds, epochs, update)
        self.console.print(tables.quality(data, rows, over))
        self._write(f"quality-{data}", epochs=epochs, rows=rows, **over)

    def service(self, exported: Exported) -> None:
        plan = serving.QUICK if self.quick else serving.FULL
        with (
            self.console.status("starting the servers") as status,
            serving.running(exported, plan.users, plan.mixes, self.cores) as servers,
        ):
            found = serving.measure(servers, plan, status.update)
            status.update("forms of a request")
            ours = servers[serving.OURS]
            found["forms"] = forms.measure(ours, plan.users, plan.requests // 2, plan.turns)
        for table in (tables.saturation, tables.constant, tables.forms):
            name = "open" if table is tables.constant else table.__name__
            self.console.print(table(found[name]))
        self._write("service", **found)
        plots.saturation(found["saturation"], self.out / "service-requests.png")
        plots.latency(found["open"], self.out / "service-latency.png")

    def memory(self, exported: Exported, requests: int, candidates: int) -> None:
        users, rows = serving.FULL.users, []
        with (
            self.console.status("starting the servers") as status,
            serving.running(exported, users, (), self.cores) as servers,
        ):
            ours = servers[serving.OURS]
            for done, mib in memory.measure(ours, users, requests, candidates, status.update):
                self.console.print(f"after {done:>9,} requests: {mib:.1f} MiB", highlight=False)
                rows.append({"requests": done, "resident_mib": mib})
        self._write("memory", candidates=candidates, rows=rows)

    def swaps(self, exported: Exported, count: int) -> None:
        plan = swaps.Plan(swaps=count)
        with (
            self.console.status("swapping versions under load"),
            swaps.running(exported, plan.users, self.cores) as (server, labels),
        ):
            found = swaps.measure(server, labels, plan)
        self.console.print(tables.swaps(found))
        self._write("swaps", plan=asdict(plan), **found.document())

    def profile(self, exported: Exported, form: str, requests: int) -> None:
        with self.console.status("profiling the service"):
            found = profile.measure(exported, self.cores, form, requests)
        self.console.print(tables.profile(found))
        self._write("profile", **found)

    def against(self, exported: Exported, other: Path, turns: int, requests: int) -> None:
        with self.console.status("starting the servers") as status:
            found = against.measure(exported, self.cores, other, turns, requests, status.update)
        self.console.print(tables.against(found))
        self._write("against", turns=turns, requests=requests, rows=found)

    def rows(
        self, impressions: int, seconds: float, given: Sequence[str], keep: Path | None
    ) -> None:
        with tempfile.TemporaryDirectory() as name, progress(self.console) as update:
            found = rows.measure(impressions, keep or Path(name), seconds, given, update)
        self.console.print(tables.rows(found))
        self._write(f"rows-{impressions}", settings=list(given), **found)

    def _write(self, name: str, **found: Any) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        about = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": asdict(self.machine),
            "load_after": load(),
        }
        (self.out / f"{name}.json").write_text(json.dumps({**about, **found}, indent=1))


def main() -> None:
    try:
        app()
    except (ServerError, StepError, serving.DifferentError) as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()

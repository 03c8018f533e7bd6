"""The command line of the service: `python -m service serve | load-histories | score | models ...`.

The commands that label versions are in `service.label_commands`.
"""

from __future__ import annotations

import signal
import socket
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from service import label_commands
from service.options import CommandError, Name, Root, default, settings_of
from service.settings import Provider, Settings
from terminal.commands import Commands

app = Commands("Serve click probabilities of a published DIN model.")
label_commands.add_to(app)

RedisUrl = Annotated[
    str | None,
    typer.Option(help="Where the histories are.", show_default=default("redis_url")),
]
Prefix = Annotated[
    str | None,
    typer.Option(
        "--key-prefix", help="Prefix of all Redis keys.", show_default=default("key_prefix")
    ),
]


@app.command()
def serve(
    *,
    repository: Root = None,
    redis_url: RedisUrl = None,
    host: Annotated[
        str | None, typer.Option(help="Address to bind.", show_default=default("host"))
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port; 0 picks one.", show_default=default("port"))
    ] = None,
    name: Name = None,
    provider: Annotated[
        Provider | None,
        typer.Option(help="auto takes CUDA where it is.", show_default=default("provider")),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(help="Threads of one run of the model.", show_default=default("threads")),
    ] = None,
    runs: Annotated[
        int | None,
        typer.Option(
            help="Runs side by side in a process.", show_default="cores / threads / workers"
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes that share the port.", show_default=default("workers")),
    ] = None,
    key_prefix: Prefix = None,
) -> None:
    """Serve POST /score, and take over newer versions of the model as they appear.

    Every option, and more, is also an environment variable: DINSERVE_REDIS_URL, DINSERVE_PORT,
    DINSERVE_TIMEOUT_MS, ... (`python -m service settings` lists them).
    """
    from service.logs import log_as_json

    settings = settings_of(
        repository=repository,
        redis_url=redis_url,
        host=host,
        port=port,
        name=name,
        provider=provider,
        threads=threads,
        runs_side_by_side=runs,
        workers=workers,
        key_prefix=key_prefix,
    )
    log_as_json()
    if settings.workers > 1:
        _serve_side_by_side(settings)
    else:
        _serve_alone(settings)


def _serve_alone(settings: Settings) -> None:
    from service.door import bound

    with ExitStack() as opened:
        try:
            listeners = opened.enter_context(bound(settings.host, settings.port))
        except OSError as error:
            raise CommandError(f"{settings.host} port {settings.port}: {error.strerror}") from None
        _serve_on(listeners, settings)


def _serve_on(listeners: list[socket.socket], settings: Settings) -> None:
    import uvicorn

    from service.worker import leave, server_options

    signal.signal(signal.SIGTERM, leave)
    from service.app import create_app
    from service.drain import Drain, Server
    from service.engine import EngineError

    drain = Drain()
    try:
        application = create_app(settings, drain=drain)
    except (EngineError, ValueError) as error:
        raise CommandError(str(error)) from None
    config = uvicorn.Config(application, **server_options(settings))
    Server(config, drain, settings).run(listeners)


def _serve_side_by_side(settings: Settings) -> None:
    """The engine is not loaded here: this process runs no model."""
    from service.supervisor import SupervisorError, supervise

    try:
        supervise(settings)
    except SupervisorError as error:
        raise CommandError(str(error)) from None


@app.command("load-histories")
def load_histories(
    *,
    data: Annotated[
        Path, typer.Option(help="Folder with the prepared events.parquet and users.parquet.")
    ] = Path("var/data"),
    repository: Root = None,
    redis_url: RedisUrl = None,
    name: Name = None,
    key_prefix: Prefix = None,
    days: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Time to live of every key.",
            show_default=f"DINSERVE_HISTORY_DAYS, {default('history_days')}",
        ),
    ] = None,
    schema_file: Annotated[
        Path | None,
        typer.Option("--schema", help="A schema, where no version is published yet."),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Also what users have already, from events.")
    ] = False,
) -> None:
    """Store the users' behaviours and profiles in Redis, for the stable version's schema."""
    import time

    from rich.console import Console

    from model.contract.schema import Schema, SchemaError
    from service import load
    from terminal.progress import progress

    settings = settings_of(
        repository=repository, redis_url=redis_url, name=name, key_prefix=key_prefix
    )
    console = Console(stderr=True)
    started = time.perf_counter()
    try:
        schema = Schema.load(schema_file) if schema_file else _served_schema(settings)
        with progress(console) as update:
            histories = load.read(
                data, schema, lambda done, total: update("read columns", done, total, {})
            )
            count = load.write(
                histories,
                schema,
                settings.redis_url,
                prefix=settings.key_prefix,
                seconds=(days or settings.history_days) * 24 * 3600,
                replace=replace,
                progress=lambda done: update("store keys", done, len(histories), {}),
            )
    except (load.LoadError, SchemaError) as error:
        raise CommandError(str(error)) from None
    console.print(
        f"{len(histories.records):,} behaviours of {len(histories.users):,} users: "
        f"{count:,} keys stored in {time.perf_counter() - started:.1f} s"
    )


@app.command()
def score(
    user: Annotated[str, typer.Option(help="The user's id.")],
    candidates: Annotated[str, typer.Option(help="Item ids, separated by commas.")],
    url: Annotated[str, typer.Option(help="The service.")] = "http://127.0.0.1:8000",
    explain: Annotated[
        int, typer.Option(min=0, max=20, help="Behaviours to name per candidate.")
    ] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as it came.")] = False,
) -> None:
    """Rank candidates for a user through a running service."""
    import httpx

    items = [item.strip() for item in candidates.split(",") if item.strip()]
    asked = {"user_id": user, "candidates": items, "explain": explain}
    try:
        answer = httpx.post(f"{url.rstrip('/')}/score", json=asked, timeout=10)
        body = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise CommandError(f"{url}: no answer of a service ({error})") from None
    if answer.status_code != 200:
        field = f" ({body['field']})" if body.get("field") else ""
        raise CommandError(f"{answer.status_code} {body.get('title')}: {body.get('detail')}{field}")
    if as_json:
        sys.stdout.write(answer.text + "\n")
    else:
        _print_ranking(body)


@app.command()
def settings() -> None:
    """List every setting: its environment variable, default, unit and meaning, as Markdown."""
    from service.settings_table import table

    sys.stdout.write(table())


def _served_schema(settings: Settings) -> Any:
    from model.contract.bundle import BundleError
    from model.contract.labels import LabelError
    from model.contract.repository import RepositoryError
    from service.versions import Versions

    try:
        versions = Versions.of(settings, by="load-histories")
        number = versions.served(versions.labels())
    except (RepositoryError, LabelError) as error:
        raise CommandError(str(error)) from None
    if number is None:
        newest = versions.listed()[0]
        raise CommandError(f"no version is valid; version {newest.version}: {newest.facts.trouble}")
    try:
        return versions.repository.open(number).schema
    except BundleError as error:
        raise CommandError(f"version {number}: {error}") from None


def _print_ranking(body: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"{body['model']} version {body['version']}")
    for column in ("", "item", "probability", "because (weight)", ""):
        table.add_column(column, justify="right" if column == "probability" else "left")
    ranked = sorted(body["scores"], key=lambda one: -one["ctr"])
    for rank, one in enumerate(ranked, 1):
        reasons = ", ".join(
            f"{reason['item_id'] or '?'} ({reason['weight']:.3f})"
            for reason in one.get("because", [])
        )
        note = "" if one["status"] == "known" else "unknown item"
        table.add_row(
            str(rank), escape(str(one["item_id"])), f"{one['ctr']:.4f}", escape(reasons), note
        )
    console = Console()
    console.print(table)
    degraded = f", {body['degraded']}" if body["degraded"] else ""
    console.print(
        f"history of {body['history_length']} behaviours{degraded}, "
        f"{body['timing_ms']['total']:.1f} ms (model {body['timing_ms']['model']:.1f} ms)"
    )


def main() -> None:
    """Run a command; what the user did wrong is one line and exit status 1, a wrong option 2."""
    try:
        app()
    except CommandError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(error.status) from None


if __name__ == "__main__":
    main()

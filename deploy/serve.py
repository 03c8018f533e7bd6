"""Serve what the demo made: Redis with the histories, and the service on 127.0.0.1:8000.

PORT is another port; DEMO_VAR another folder than var.
"""

from __future__ import annotations

import json
import os
import sys
import tomllib
from pathlib import Path

from rich.console import Console

from deploy.processes import (
    HOST,
    ROOT,
    StepError,
    interruptible,
    listens,
    redis,
    run,
    service,
)
from deploy.shop import Shop


def main() -> int:
    """Serve until interrupted; 1 when something failed."""
    interruptible()
    console = Console(highlight=False)
    try:
        serve(console, Path(os.environ.get("DEMO_VAR") or ROOT / "var").resolve())
    except StepError as error:
        console.print(f"Stopped: {error}", style="red", markup=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("Stopped.")
    return 0


def serve(console: Console, var: Path) -> None:
    """Load the histories and serve them in the foreground. Raises `StepError`."""
    data, repository = var / "data", var / "repository"
    port = _port(os.environ.get("PORT") or "8000")
    if not (data / "schema.toml").exists() or not repository.exists():
        raise StepError(f"nothing is published in {repository}: run make demo first")
    schema = tomllib.loads((data / "schema.toml").read_text())
    name = schema["name"]
    with redis() as url:
        where = ["--data", data, "--repository", repository, "--name", name]
        run("service", "load-histories", *where, "--redis-url", url)
        with service(repository, name, url, port, None) as process:
            body = Shop.open(data, schema, {}).request(5)
            console.print(f"\nServing {name} on http://{HOST}:{port} (try /docs); Ctrl-C stops it.")
            console.print(f"Histories: {url}\n")
            print(f"curl -s http://{HOST}:{port}/score -H 'Content-Type: application/json' \\")
            print(f"  -d '{json.dumps(body)}'\n", flush=True)
            code = process.wait()
            if code:
                raise StepError(f"the service ended with exit code {code}")


def _port(text: str) -> int:
    """The port to serve on. Raises `StepError` for none, and for one that is taken: the other
    service there would answer for ours."""
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 2**16:
        raise StepError(f"PORT={text}: expected a number from 1 to 65535")
    if listens(int(text)):
        raise StepError(f"port {text} of {HOST} is taken: make serve PORT=n for another")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())

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

from deploy.processes import HOST, ROOT, StepError, interruptible, redis, run, service
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
    if not (data / "schema.toml").exists() or not repository.exists():
        raise StepError(f"nothing is published in {repository}: run make demo first")
    schema = tomllib.loads((data / "schema.toml").read_text())
    name, port = schema["name"], int(os.environ.get("PORT") or 8000)
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


if __name__ == "__main__":
    sys.exit(main())

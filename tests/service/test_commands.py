"""The commands as a user types them."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pytest

from service.__main__ import main
from tests.support import ROOT, Service, publish_toy


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    output: str
    errors: str


Command = Callable[..., Ended]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["service", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        output, errors = capsys.readouterr()
        return Ended(int(ended.value.code or 0), output, errors)

    return run


def logs(folder: Path) -> Path:
    events = {
        "user_id": ["a", "a", "b"],
        "item_id": ["i1", "i2", "i3"],
        "ts": [1, 2, 3],
        "behaviour": [True] * 3,
        "rating": ["5", "4", "3"],
    }
    users = {"user_id": ["a", "b"], "gender": ["F", "M"], "income": [1.0, 30.0]}
    pl.DataFrame(events).write_parquet(folder / "events.parquet")
    pl.DataFrame(users).write_parquet(folder / "users.parquet")
    return folder


def test_histories_are_loaded_and_then_scored(
    command: Command, service: Service, repository: Path, redis_url: str, tmp_path: Path
) -> None:
    """From prepared logs to a ranking on the screen, with the behaviours that drove it."""
    places = ("--repository", repository, "--redis-url", redis_url)
    loaded = command("load-histories", "--data", logs(tmp_path), *places)
    assert loaded.status == 0
    assert "3 behaviours of 2 users: 4 keys stored" in " ".join(loaded.errors.split())
    asked = ("score", "--user", "a", "--candidates", "i3,i4, nothing", "--url", service.url)
    ranked = command(*asked)
    assert ranked.status == 0
    assert "i1 (" in ranked.output
    assert "unknown item" in ranked.output
    assert "history of 2 behaviours" in ranked.output
    whole = json.loads(command(*asked, "--json", "--explain", 0).output)
    assert [score["item_id"] for score in whole["scores"]] == ["i3", "i4", "nothing"]


def test_models_lists_what_can_be_served(command: Command, tmp_path: Path) -> None:
    """Each version with its metrics, and why a bad one is refused."""
    publish_toy(tmp_path)
    publish_toy(tmp_path, bias=1.0)
    (tmp_path / "toy/2/golden.npz").write_bytes(b"")
    listed = command("models", "--repository", tmp_path)
    assert listed.status == 0
    assert "auc 0.7500" in listed.output
    assert "refused: golden.npz" in listed.output


@pytest.mark.parametrize("words", [[], ["serve"], ["load-histories"], ["score"], ["models"]])
def test_help_suffices(words: list[str], command: Command) -> None:
    """Every command explains itself."""
    helped = command(*words, "--help")
    assert helped.status == 0
    assert "Usage" in helped.output


NOWHERE = "redis://127.0.0.1:1/0"
ASK = ("score", "--user", "u", "--candidates", "i1", "--url")
LOAD = ("load-histories", "--repository", "GOOD", "--redis-url", NOWHERE, "--data")


@pytest.mark.parametrize(
    "words",
    [
        ("models", "--repository", "NONE"),
        ("models", "--repository", "GOOD", "--name", "other"),
        (*ASK, "http://127.0.0.1:1"),
        (*ASK, "nonsense"),
        (*LOAD, "LOGS"),
        (*LOAD, "NONE"),
        ("serve", "--repository", "GOOD", "--redis-url", "http://x"),
        ("serve", "--repository", "GOOD", "--port", "70000"),
        ("serve", "--repository", "GOOD", "--provider", "cuda"),
    ],
)
def test_a_mistake_is_one_clear_line(
    words: tuple[str, ...], command: Command, tmp_path: Path
) -> None:
    """What the user did wrong is one line on standard error and a status, not a traceback."""
    publish_toy(tmp_path / "good")
    places = {"GOOD": tmp_path / "good", "NONE": tmp_path / "none", "LOGS": logs(tmp_path)}
    ended = command(*(places.get(word, word) for word in words))
    assert ended.status == 1
    assert len(ended.errors.splitlines()) == 1
    assert ended.errors.startswith("error: ")


def test_a_refused_request_says_which_field(command: Command, service: Service) -> None:
    """The problem of a request is shown in one line."""
    ended = command("score", "--user", "u", "--candidates", "", "--url", service.url)
    assert ended.status == 1
    assert "candidates" in ended.errors


def test_a_taken_port_ends_the_service(repository: Path) -> None:
    """A service that can't bind its port ends by itself, and says why."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        words = ["serve", "--repository", str(repository), "--port", port]
        ended = subprocess.run(
            [sys.executable, "-m", "service", *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert ended.returncode != 0
    assert "address already in use" in ended.stderr

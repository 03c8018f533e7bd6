"""The commands as a user types them."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pytest
from redis import Redis

from model.contract.labels import LabelFile
from model.contract.repository import Repository
from model.contract.schema import Schema
from model.contract.store import history_key
from service.__main__ import main
from tests.support import ROOT, TOY, Service, publish_toy, running_redis


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


def test_histories_are_loaded_before_there_is_a_model(
    command: Command,
    redis_url: str,
    tmp_path: Path,
    schema: Schema,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a schema of one's own no version is needed; without a readable one that is said. They
    live for as long as the setting says."""
    monkeypatch.setenv("DINSERVE_HISTORY_DAYS", "30")
    (tmp_path / "schema.toml").write_text(TOY)
    where = ("--repository", tmp_path / "empty", "--redis-url", redis_url)
    words = ("--data", logs(tmp_path), *where, "--schema")
    loaded = command("load-histories", *words, tmp_path / "schema.toml")
    assert (loaded.status, "4 keys stored" in loaded.errors) == (0, True)
    with Redis.from_url(redis_url) as client:
        lives = client.ttl(history_key("din", "a", schema.layout))
    assert 29 * 86_400 < lives <= 30 * 86_400
    failed = command("load-histories", *words, tmp_path / "no.toml")
    assert (failed.status, "no.toml" in failed.errors) == (1, True)


def test_histories_are_loaded_for_the_version_that_is_served(
    command: Command, redis_url: str, tmp_path: Path
) -> None:
    """A broken newest one is passed over as by the service; where none is left, that is said."""
    publish_toy(tmp_path / "repository")
    publish_toy(tmp_path / "repository")
    broken = tmp_path / "repository" / "toy" / "2" / "schema.toml"
    broken.write_text("name = 3")
    where = ("--repository", tmp_path / "repository", "--redis-url", redis_url)
    words = ("load-histories", "--data", logs(tmp_path), *where)
    assert command(*words).status == 0
    (tmp_path / "repository" / "toy" / "1" / "model.onnx").write_bytes(b"")
    failed = command(*words)
    assert failed.status == 1
    assert "no version is valid; version 2: " in failed.errors


def test_models_lists_what_can_be_served(command: Command, tmp_path: Path) -> None:
    """Each version with its metrics, of which set they are, and why a bad one is refused."""
    publish_toy(tmp_path)
    publish_toy(tmp_path, bias=1.0)
    (tmp_path / "toy/2/golden.npz").write_bytes(b"")
    listed = command("models", "--repository", tmp_path)
    assert listed.status == 0
    for figure in ("test", "auc 0.7500", "impressions 1,490"):
        assert figure in listed.output
    assert "refused: golden.npz" in listed.output


def test_models_lists_labels_age_and_traffic(command: Command, tmp_path: Path) -> None:
    """As a table, and as JSON for scripts."""
    for bias in range(3):
        publish_toy(tmp_path, bias=float(bias))
    where = ("--repository", tmp_path)
    command("canary", 3, "--share", 0.25, *where)
    command("shadow", 1, "--share", 1, *where)
    rows = command("models", *where).output.splitlines()
    cells = [[cell.strip() for cell in row.split("│")][1:5] for row in rows if " test " in row]
    assert [(cell[0], cell[1], cell[3]) for cell in cells] == [
        ("3", "canary", "0.25"),
        ("2", "stable", "0.75"),
        ("1", "shadow", "beside 1"),
    ]
    assert all(cell[2].endswith(" s") for cell in cells)
    listed = json.loads(command("models", "--json", *where).output)
    assert [(each["version"], each["traffic"], each["shadow"]) for each in listed] == [
        (3, 0.25, 0.0),
        (2, 0.75, 0.0),
        (1, 0.0, 1.0),
    ]


def test_the_age_of_a_version_is_of_when_it_was_made(command: Command, tmp_path: Path) -> None:
    """A copy of its files, as on another machine, is no younger."""
    publish_toy(tmp_path, created=time.time() - 3 * 86_400)
    where = ("--repository", tmp_path)
    assert "3 d" in command("models", *where).output
    [listed] = json.loads(command("models", "--json", *where).output)
    assert 3 * 86_400 <= listed["age_seconds"] < 4 * 86_400


def test_versions_are_labelled(command: Command, tmp_path: Path) -> None:
    """Each command says what the labels are then; what it does is in the log of changes."""
    for bias in range(3):
        publish_toy(tmp_path, bias=float(bias))
    steps: list[tuple[tuple[object, ...], str]] = [
        (("promote", 1, "--why", "a test"), "toy: 1 is stable"),
        (("canary", 2, "--share", 0.1), "toy: 1 is stable; 2 is the canary of 0.1 of the users"),
        (("canary", "--off"), "toy: 1 is stable"),
        (("shadow", 3, "--share", 1), "toy: 1 is stable; 3 is the shadow of 1 of the requests"),
        (("shadow", "--off"), "toy: 1 is stable"),
        (("promote", 2), "toy: 2 is stable"),
        (("rollback",), "toy: 1 is stable"),
        (("pin", 3), "toy: 3 is stable, pinned"),
        (("unpin",), "toy: 3 is stable"),
        (("follow",), "toy: the newest valid version is stable"),
    ]
    for words, said in steps:
        ended = command(*words, "--repository", tmp_path)
        assert (ended.status, ended.output) == (0, f"{said}\n")
    changes = LabelFile(Repository(tmp_path, "toy"), by="").read().changes
    assert (changes[0].by, changes[0].why) == ("command line", "a test")
    assert len(changes) == len(steps)


def test_a_version_that_can_not_be_served_gets_no_label(command: Command, tmp_path: Path) -> None:
    """Checked before: also the one that a rollback would go to."""
    for bias in range(3):
        publish_toy(tmp_path, bias=float(bias))
    where = ("--repository", tmp_path)
    command("promote", 1, *where)
    command("promote", 2, *where)
    for number in (1, 3):
        (tmp_path / f"toy/{number}/golden.npz").write_bytes(b"")
    share = ("--share", 0.5)
    for words in (("promote", 3), ("pin", 3), ("canary", 3, *share), ("shadow", 3, *share)):
        ended = command(*words, *where)
        assert ended.status == 1
        assert "version 3 refused: golden.npz" in ended.errors
    assert "version 1 refused" in command("rollback", *where).errors
    assert LabelFile(Repository(tmp_path, "toy"), by="").read().stable == 2


def test_without_labels_rollbacks_go_back_from_the_newest_valid_version(
    command: Command, tmp_path: Path
) -> None:
    """That one is served, not one that is refused; each rollback is a step."""
    for bias in range(4):
        publish_toy(tmp_path, bias=float(bias))
    (tmp_path / "toy/4/golden.npz").write_bytes(b"")
    for stable in (2, 1):
        ended = command("rollback", "--repository", tmp_path)
        assert (ended.status, ended.output) == (0, f"toy: {stable} is stable\n")


def test_histories_are_loaded_for_the_stable_version(command: Command, tmp_path: Path) -> None:
    """Its schema says how they are stored, not that of a newer one."""
    publish_toy(tmp_path)
    publish_toy(tmp_path, schema_text=TOY.replace('name = "rating"', 'name = "dwell"'))
    command("promote", 1, "--repository", tmp_path)
    with running_redis(tmp_path) as redis:
        places = ("--repository", tmp_path, "--redis-url", redis.url)
        assert command("load-histories", "--data", logs(tmp_path), *places).status == 0
        with Redis.from_url(redis.url) as client:
            assert client.exists(history_key("din", "a", Schema.parse(TOY).layout))


LABELLING = ("promote", "rollback", "pin", "unpin", "follow", "canary", "shadow", "admin")


@pytest.mark.parametrize(
    "words",
    [[], ["serve"], ["load-histories"], ["score"], ["models"], *([word] for word in LABELLING)],
)
def test_help_suffices(words: list[str], command: Command) -> None:
    """Every command explains itself."""
    helped = command(*words, "--help")
    assert helped.status == 0
    assert "Usage" in helped.output


@pytest.mark.parametrize(
    ("words", "defaults"),
    [
        (
            "serve",
            "var/repository redis://127.0.0.1:6379/0 127.0.0.1 8000 auto 1 din "
            "cores / threads / workers the one published last",
        ),
        ("load-histories", "var/data var/repository redis://127.0.0.1:6379/0 din 90"),
        ("score", "http://127.0.0.1:8000 3"),
        ("admin", "var/repository 127.0.0.1 8001"),
    ],
)
def test_help_says_what_an_option_is_by_default(
    words: str, defaults: str, command: Command
) -> None:
    """So that nobody has to look elsewhere what a plain `serve` does."""
    helped = " ".join(command(words, "--help").output.split())
    found = " ".join(re.findall(r"\[default: \(?(.*?)\)?\]", helped))
    assert [each for each in defaults.split() if each not in found.split()] == []


NOWHERE = "redis://127.0.0.1:1/0"
ASK = ("score", "--user", "u", "--candidates", "i1", "--url")
LOAD = ("load-histories", "--repository", "GOOD", "--redis-url", NOWHERE, "--data")


@pytest.mark.parametrize(
    "words",
    [
        ("models", "--repository", "NONE"),
        ("models", "--repository", "GOOD", "--name", "other"),
        ("promote", "9", "--repository", "GOOD"),
        ("promote", "1", "--repository", "NONE"),
        ("rollback", "--repository", "GOOD"),
        ("admin", "--repository", "GOOD"),
        ("canary", "1", "--share", "0.5", "--repository", "GOOD"),
        (*ASK, "http://127.0.0.1:1"),
        (*ASK, "nonsense"),
        (*LOAD, "LOGS"),
        (*LOAD, "NONE"),
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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("serve --redis-url http://x", "redis_url: expected redis://"),
        ("serve --port 70000", "port: Input should be less than or equal to 65535"),
        ("load-histories --key-prefix :", "key_prefix: String should match"),
        ("canary 1", "canary: a version and --share expected"),
        ("canary 1 --off", "canary: a version and --share expected"),
        ("shadow --share 0.5", "shadow: a version and --share expected"),
        ("shadow --share 0.5 --off", "shadow: a version and --share expected"),
    ],
)
def test_a_wrong_option_is_status_2(words: str, said: str, command: Command) -> None:
    """It is told from what went wrong at work, as in all other commands, and names the option."""
    ended = command(*words.split())
    assert ended.status == 2
    assert ended.errors.startswith(f"error: {said}")
    assert len(ended.errors.splitlines()) == 1


def test_a_refused_request_says_which_field(command: Command, service: Service) -> None:
    """The problem of a request is shown in one line."""
    ended = command("score", "--user", "u", "--candidates", "", "--url", service.url)
    assert ended.status == 1
    assert "candidates" in ended.errors


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_taken_port_ends_the_service(workers: str, repository: Path) -> None:
    """One line says why, before any work."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        words = ["serve", "--repository", str(repository), "--port", port, "--workers", workers]
        ended = subprocess.run(
            [sys.executable, "-m", "service", *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == f"error: 127.0.0.1 port {port}: Address already in use\n"

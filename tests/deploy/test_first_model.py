"""The job that makes a stack's first model."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from redis import Redis

from model.contract.repository import Repository
from tests.deploy.test_schedules import stopped, stub
from tests.support import ROOT, publish_toy, running_redis

SCRIPT = ROOT / "deploy/first-model.sh"


def first_model(folder: Path, given: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the job on folders of its own."""
    python = Path(sys.executable).parent
    path = f"{python}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, **folders(folder), **given}
    return subprocess.run(
        ["/bin/sh", str(SCRIPT)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def test_an_empty_repository_gets_a_model_and_redis_its_histories_once(tmp_path: Path) -> None:
    """Run for real: the second time nothing is trained and no history is overwritten."""
    with running_redis(tmp_path) as server, Redis.from_url(server.url) as client:
        given = {
            "DINSERVE_REDIS_URL": server.url,
            "FIRST_USERS": "60",
            "FIT_OPTIONS": "--set epochs=1 --threads 1",
        }
        first = first_model(tmp_path, given)
        assert first.returncode == 0, first.stderr
        assert Repository(tmp_path / "repository", "synthetic").versions() == [1]
        assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["base"]
        histories = client.keys("din:{*}:*:h:*")
        assert len(histories) == 60
        client.set(histories[0], b"what came since")
        second = first_model(tmp_path, given)
        assert second.returncode == 0
        assert "nothing to train" in second.stderr
        assert client.get(histories[0]) == b"what came since"
        assert Repository(tmp_path / "repository", "synthetic").versions() == [1]


def folders(folder: Path) -> dict[str, str]:
    """The folders that the job works on, and how it is told of them."""
    named = {"DINSERVE_REPOSITORY": "repository", "LOGS": "logs", "DATA": "data"}
    for name in named.values():
        (folder / name).mkdir(exist_ok=True)
    return {variable: str(folder / name) for variable, name in named.items()}


@pytest.mark.parametrize(
    ("files", "prepared"),
    [
        ((), "--source synthetic --users 500"),
        (("ml-1m.zip",), "--source movielens-1m --path DATA/ml-1m.zip"),
        (("schema.toml",), "--source parquet --path DATA --schema DATA/schema.toml"),
    ],
)
def test_the_data_folder_says_what_is_learnt_from(
    tmp_path: Path, files: tuple[str, ...], prepared: str
) -> None:
    """And all is done before the version is published, which is last."""
    log = tmp_path / "log"
    program = stub(tmp_path, "python", f'echo "$@" >> {log}')
    (tmp_path / "data").mkdir()
    for name in files:
        (tmp_path / "data" / name).touch()
    ended = first_model(tmp_path, {"PATH": program["PATH"], "FIT_OPTIONS": "--set epochs=1"})
    assert ended.returncode == 0, ended.stderr
    prepare, fit, export = log.read_text().splitlines()
    base, run = tmp_path / "logs/base", tmp_path / "logs/.first-model"
    words = prepared.replace("DATA", str(tmp_path / "data"))
    assert prepare == f"-m training prepare --out {base} {words}"
    assert fit == f"-m training fit --data {base} --out {run} --set epochs=1"
    assert export == f"-m training export --run {run} --repository {tmp_path / 'repository'}"


def test_a_job_that_was_killed_goes_on_with_the_logs_it_had(tmp_path: Path) -> None:
    """Whole logs are not prepared again, and histories come before the version."""
    log = tmp_path / "log"
    program = stub(tmp_path, "python", f'echo "$2 $3" >> {log}')
    (tmp_path / "logs/base").mkdir(parents=True)
    (tmp_path / "logs/base/schema.toml").touch()
    assert first_model(tmp_path, {"PATH": program["PATH"]}).returncode == 0
    assert log.read_text().split("\n") == [
        "training fit",
        "service load-histories",
        "training export",
        "",
    ]


def test_a_data_folder_of_something_else_is_an_error(tmp_path: Path) -> None:
    """Which says what was expected, and nothing is made."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/clicks.json").touch()
    ended = first_model(tmp_path, {})
    assert ended.returncode == 1
    assert "expected ml-1m.zip, or schema.toml" in ended.stderr
    assert not list((tmp_path / "repository").iterdir())


def test_a_data_folder_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    """It is told apart from one of something else, since a container's user may see less."""
    ended = first_model(tmp_path, {"DATA": str(tmp_path / "none")})
    assert ended.returncode == 1
    assert f"the data folder: user {os.getuid()} can't read it" in ended.stderr


def test_a_version_of_ones_own_is_left_alone(tmp_path: Path) -> None:
    """A repository that is brought along needs no logs."""
    (tmp_path / "repository").mkdir()
    publish_toy(tmp_path / "repository")
    ended = first_model(tmp_path, {"DINSERVE_REDIS_URL": "redis://127.0.0.1:1/0"})
    assert (ended.returncode, "no histories to load" in ended.stderr) == (0, True)
    assert [path.name for path in (tmp_path / "repository").iterdir()] == ["toy"]


@pytest.mark.parametrize(("code", "expected"), [(1, 1), (0, 143)])
def test_a_stop_reaches_the_job_at_work_and_no_other_begins(
    tmp_path: Path, code: int, expected: int
) -> None:
    """Also when that one ended well, as one does that was almost done."""
    base = tmp_path / "logs/base"
    base.mkdir(parents=True)
    (base / "schema.toml").touch()
    assert stopped(tmp_path, ["/bin/sh", str(SCRIPT)], code, **folders(tmp_path)) == expected
    fit = f"-m training fit --data {base} --out {tmp_path / 'logs/.first-model'}"
    assert (tmp_path / "log").read_text() == f"{fit}\ntold\n"

"""The schedules that ship: well-formed, and in words that the command knows."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.compose_file import SERVICES
from tests.support import ROOT
from tests.training.test_job import command
from training.announce import EXITS

CRONJOB = ROOT / "deploy/kubernetes/base/cronjob-retrain.yaml"
NIGHTLY = ROOT / "deploy/retrain-nightly.sh"
DAG = ROOT / "deploy/airflow/retrain_dag.py"


def listed(path: Path, key: str) -> list[str]:
    """A list that stands on the one line of its key."""
    (found,) = re.findall(rf"^ *{key}: (\[.*\])$", path.read_text(), re.M)
    words: list[str] = json.loads(found)
    return words


def dag() -> dict[str, Any]:
    """What the DAG's operator is given, as far as it is plain."""
    found: dict[str, Any] = {}
    for node in ast.walk(ast.parse(DAG.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "BashOperator":
            for keyword in node.keywords:
                try:
                    found[str(keyword.arg)] = ast.literal_eval(keyword.value)
                except ValueError:
                    continue
    return found


def words_of_compose() -> list[str]:
    """What its script is given, and its default RETRAIN_OPTIONS."""
    retrain = SERVICES["retrain"]
    shell, script, *words = retrain["command"]
    assert (shell, script) == ("/bin/sh", f"/app/{NIGHTLY.relative_to(ROOT)}")
    options = retrain["environment"]["RETRAIN_OPTIONS"].removeprefix("${RETRAIN_OPTIONS:-")
    return [*words, *shlex.split(options.removesuffix("}"))]


def words_of_dag() -> list[str]:
    rendered = re.sub(r"\{\{.*?\}\}", "2026-11-21", dag()["bash_command"])
    python, module, name, *rest = shlex.split(rendered)
    assert (python, module, name) == ("python", "-m", "training")
    assert rest[0] == "retrain"
    return rest[1:]


@pytest.mark.parametrize(
    "words",
    [listed(CRONJOB, "args"), words_of_compose(), words_of_dag()],
    ids=["kubernetes", "compose", "airflow"],
)
def test_the_command_knows_every_option(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Unknown ones are an error even before --help is."""
    assert command("retrain", *words, "--help") == 0
    assert command("retrain", *words, "--no-such-option", "--help") == 2


def test_the_dag_skips_what_is_no_failure() -> None:
    """Exit codes of a refusal and of nothing new."""
    assert dag()["skip_on_exit_code"] == [EXITS["refused"], EXITS["nothing_new"]]


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (1, 1), (10, 10), (11, 0), (12, 12)])
def test_the_cron_job_takes_nothing_new_for_a_success(
    tmp_path: Path, code: int, expected: int
) -> None:
    """Its shell passes options and exit codes on; that of a refusal ends the Job."""
    program = stub(tmp_path, "python", f'echo "$@"; exit {code}')
    shell = [*cron_job(), "--repository", "a folder"]
    ended = subprocess.run(shell, env=program, capture_output=True, text=True, check=False)
    assert ended.returncode == expected
    assert ended.stdout == "-m training retrain --repository a folder\n"
    (values,) = re.findall(r"values: (\[.*?\])", CRONJOB.read_text())
    assert json.loads(values) == [EXITS["refused"]]


def test_nights_follow_one_another_whatever_comes_of_them(tmp_path: Path) -> None:
    """It sleeps until the hour, that of tomorrow when today's is past, and retrains each time."""
    log = tmp_path / "log"
    program = stub(tmp_path, "sleep", f'echo sleep "$@" >> {log}')
    again = f'[ "$(grep -c retrain {log})" -lt 3 ] || kill $PPID'
    stub(tmp_path, "python", f'echo "$@" >> {log}; {again}; exit 10')
    # 01:00 now; then, asked for by -d, 03:00 and in the second night 00:30 of the same day.
    stub(
        tmp_path,
        "date",
        'case "$*" in *-d*03:00*) echo 10800;; *-d*) echo 1800;; *) echo 3600;; esac',
    )
    for at, seconds in (("03:00", 7200), ("00:30", 84_600)):
        log.write_text("")
        ended = subprocess.run(
            ["/bin/sh", str(NIGHTLY), "--repository", "r"],
            env={**program, "RETRAIN_AT": at, "RETRAIN_OPTIONS": "--window-days 7"},
            timeout=300,
            check=False,
        )
        assert ended.returncode == 0
        night = f"sleep {seconds}\n-m training retrain --repository r --window-days 7\n"
        assert log.read_text() == night * 3


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (1, 1), (10, 10), (11, 0), (12, 12)])
def test_a_stop_reaches_the_cron_jobs_job_and_waits_for_it(
    tmp_path: Path, code: int, expected: int
) -> None:
    """As when its pod is evicted: the job releases its lease, and its exit code still counts."""
    assert stopped(tmp_path, cron_job(), code) == expected
    assert (tmp_path / "log").read_text() == "-m training retrain\ntold\n"


def test_a_stop_reaches_the_nights_job_and_ends_the_loop(tmp_path: Path) -> None:
    """After the job has released its lease; whatever comes of it."""
    stub(tmp_path, "sleep", "exit 0")
    assert stopped(tmp_path, ["/bin/sh", str(NIGHTLY)], 1) == 0
    assert (tmp_path / "log").read_text() == "-m training retrain\ntold\n"


def test_a_stop_ends_the_wait_for_the_night(tmp_path: Path) -> None:
    """There is no job then, and none begins."""
    began = tmp_path / "began"
    os.mkfifo(began)
    stub(tmp_path, "sleep", f"echo > {began}; exec /bin/sleep 1000")
    program = stub(tmp_path, "python", f"echo > {tmp_path / 'log'}")
    with subprocess.Popen(["/bin/sh", str(NIGHTLY)], env=program) as process:
        began.read_text()
        process.terminate()
        assert process.wait(60) == 0
    assert not (tmp_path / "log").exists()


def cron_job() -> list[str]:
    """The manifest's command, with the image's folder where it is here."""
    return [word.replace("/app/", f"{ROOT}/") for word in listed(CRONJOB, "command")]


def stopped(folder: Path, command: list[str], code: int, **environment: str) -> int:
    """The exit code of a script that is told to end while its job is at work, which then cleans up
    and ends with ``code``. The job notes in ``log`` what it is and that it was told."""
    log, began, never = folder / "log", folder / "began", folder / "never"
    os.mkfifo(began)
    os.mkfifo(never)
    job = f"""
exec 3<> {never}
trap 'echo told >> {log}; exit {code}' TERM
echo "$@" >> {log}
echo > {began}
while :; do read _ <&3; done
"""
    program = {**stub(folder, "python", job), **environment}
    process = subprocess.Popen(command, env=program, start_new_session=True)
    try:
        began.read_text()  # waits for the job
        process.terminate()
        return process.wait(60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # a job that was left behind, too
        process.wait()


def stub(folder: Path, name: str, script: str) -> dict[str, str]:
    """A program of that name, before all others in the environment that is returned."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


def test_the_files_are_yaml() -> None:
    """With the fields that matter where they belong."""
    yaml = pytest.importorskip("yaml")
    job = yaml.safe_load(CRONJOB.read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "CronJob")
    assert job["spec"]["concurrencyPolicy"] == "Forbid"
    template = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert template["restartPolicy"] == "Never"  # as a failure policy needs
    (container,) = template["containers"]
    assert container["args"] == listed(CRONJOB, "args")
    names = {each["name"] for each in template["volumes"]}
    assert {each["name"] for each in container["volumeMounts"]} == names
    assert SERVICES["retrain"]["profiles"] == ["retrain"]

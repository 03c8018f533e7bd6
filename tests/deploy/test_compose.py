"""The compose file for real: built, started, scored through its port, broken, mended, retrained.

Where DOCKER_HOST names no engine it is skipped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from tests.deploy.compose_file import OURS
from tests.deploy.stack import Stack, need_engine, status_of, until

BASE = "python:3.11-slim-bookworm"
OWN_BYTES = 300 * 10**6
# A busy machine must not be what degrades an answer, or refuses an event.
PATIENT = {
    "DINSERVE_TIMEOUT_MS": "60000",
    "DINSERVE_STORE_TIMEOUT_MS": "2000",
    "DINSERVE_EVENT_TIMEOUT_MS": "30000",
}
RUNNING = ("redis", "service", "collector")
# The containers are tested here, not the gate: few impressions must do.
LENIENT = (
    "--settle-seconds 0 --rule impressions=50 --rule positives=5 --rule ranking=1 "
    "--rule log_loss=9 --rule calibration_low=0 --rule calibration_high=99 "
    "--rule gain=-1 --rule slice_ranking=1 --rule slice_log_loss=99 --rule drop=1 --rule rate=99"
)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Everything built and up, with a small synthetic world in an empty repository."""
    need_engine()
    found = Stack(
        tmp_path_factory.mktemp("checkout"),
        FIRST_USERS="200",
        SERVICE_CPUS="1",
        DINSERVE_KEY_PREFIX="test",
        FIT_OPTIONS="--set epochs=1",
        COLLECT_EVERY="1",
        RETRAIN_OPTIONS=LENIENT,
        **PATIENT,
    )
    try:
        found.compose("build")
        found.compose("up", "--detach", "--wait")
        yield found
    finally:
        found.close()


def test_a_first_model_is_made_while_the_service_waits_for_it(stack: Stack) -> None:
    """The service is up without a model, and ready once there is one."""
    first, service = stack.inspect("first-model"), stack.inspect("service")
    assert first["State"]["ExitCode"] == 0
    assert service["State"]["StartedAt"] < first["State"]["FinishedAt"]
    assert service["RestartCount"] == 0
    ready = stack.client.get("/readyz").json()
    assert (ready["model"], ready["version"] >= 1, ready["provider"]) == ("synthetic", True, "cpu")
    assert (ready["cores"], ready["runs"], ready["threads"]) == (1, 1, 1)  # of its quota
    assert stack.client.get("/docs").status_code == 200
    answer = stack.score("0", "1", "2", "3")
    assert answer["degraded"] is None
    assert answer["history_length"] > 0
    assert all(0 < each["ctr"] < 1 for each in answer["scores"])


def test_coming_up_again_changes_nothing(stack: Stack) -> None:
    """The job finds a version and histories, and nobody is started anew."""
    before = stack.inspect("service")["State"]["StartedAt"]
    stack.compose("up", "--detach", "--wait")
    said = stack.compose("logs", "--no-log-prefix", "first-model")
    assert "a version is published: nothing to train" in said
    assert ": 0 keys stored" in said
    assert stack.inspect("service")["State"]["StartedAt"] == before


@pytest.mark.parametrize("service", RUNNING)
def test_a_container_can_do_next_to_nothing(stack: Stack, service: str) -> None:
    """No root, no capability, no way to gain one, nothing to write but what is mounted."""
    process = status_of(stack.inside(service, "cat", "/proc/1/status"))
    users = set(process["Uid"].split())
    assert "0" not in users
    if service in OURS:
        assert users == {"10001"}
    assert {process[f"Cap{name}"] for name in ("Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert process["NoNewPrivs"] == "1"
    probe = "touch /usr/written 2>&1; touch /tmp/written && rm /tmp/written && echo tmp can"
    said = stack.inside(service, "sh", "-c", probe)
    assert "Read-only file system" in said
    assert "tmp can" in said
    host = stack.inspect(service)["HostConfig"]
    assert host["Memory"] > 0
    assert host["PidsLimit"] > 0
    assert host["Init"] is True
    assert stack.inspect(service)["State"]["Health"]["Status"] == "healthy"


def test_the_service_cannot_write_the_models(stack: Stack) -> None:
    """It reads the repository; the trainer and the collector write it."""
    said = stack.inside("service", "sh", "-c", "touch /repository/written 2>&1 || true")
    assert "Read-only file system" in said
    stack.inside("collector", "sh", "-c", "touch /repository/.written && rm /repository/.written")


def test_the_service_image_is_small_and_has_no_torch_and_no_compiler(stack: Stack) -> None:
    """Nor pip among its packages; the label says of which revision it is."""
    image = f"dinserve-service:{stack.tag}"
    assert stack.size(image) - stack.size(BASE) < OWN_BYTES
    names = "('torch', 'polars', 'pyarrow', 'pip', 'training', 'pytest')"
    search = f"from importlib.util import find_spec as f; print([n for n in {names} if f(n)])"
    assert stack.inside("service", "python", "-c", search) == "[]\n"
    stack.inside("service", "python", "-c", "import s3fs")
    tools = "for each in cc gcc g++ make git; do command -v $each; done; true"
    assert stack.inside("service", "sh", "-c", tools) == ""
    format_ = '{{index .Config.Labels "org.opencontainers.image.revision"}} {{.Config.User}}'
    assert stack.docker("image", "inspect", "--format", format_, image) == "0123abc 10001:10001\n"


def test_a_change_of_source_installs_nothing(stack: Stack) -> None:
    """All layers of packages come from the cache."""
    path = stack.folder / "service/app.py"
    path.write_text(path.read_text() + "# changed\n")
    said = stack.compose(
        "--progress", "plain", "build", "service", "first-model", IMAGE_TAG="changed"
    )
    stack.docker("image", "rm", "dinserve-service:changed", "dinserve-training:changed")
    steps = dict.fromkeys(line.split()[0] for line in said.splitlines() if "pip --python" in line)
    assert len(steps) == 2
    for step in steps:
        assert f"{step} CACHED" in said
    assert "Installing collected packages" not in said


def test_an_event_is_in_the_next_score_and_outlives_redis(stack: Stack) -> None:
    """Redis killed: degraded, not failing; back again: what was written before is still there."""
    event = {"user_id": "newcomer", "item_id": "7", "action": "click", "ts": int(time.time())}
    assert stack.score("newcomer", "1")["history_length"] == 0
    answer = stack.client.post("/events", json=event)
    assert answer.status_code == 200, answer.text
    assert stack.score("newcomer", "1")["history_length"] == 1

    stack.compose("kill", "redis")
    for _ in range(20):
        answer = stack.score("newcomer", "1")
        assert (answer["degraded"], answer["history_length"]) == ("history_unavailable", 0)
    assert stack.client.get("/readyz").status_code == 200

    stack.compose("up", "--detach", "--wait", "redis")
    until(lambda: stack.score("newcomer", "1")["degraded"] is None, "no longer degraded")
    assert stack.score("newcomer", "1")["history_length"] == 1


def test_what_happened_becomes_a_version_that_is_served(stack: Stack) -> None:
    """Traffic of yesterday through the port, collected, retrained by the profile, taken over."""
    before = stack.score("0", "1")["version"]
    play(stack)
    logged = "import polars as pl; print(len(pl.read_parquet('/logs/events/*/*.parquet')))"
    until(
        lambda: (
            "written" in stack.compose("logs", "collector")
            and int(stack.inside("collector", "python", "-c", logged)) >= IMPRESSIONS
        ),
        "the events in the collected logs",
    )
    soon = datetime.now(UTC) + timedelta(seconds=60)  # its container runs by then
    stack.compose(
        "--profile", "retrain", "up", "--detach", "retrain", RETRAIN_AT=f"{soon:%H:%M:%S}"
    )
    until(
        lambda: "retrain: exit code" in stack.compose("logs", "retrain"), "retrained", seconds=1200
    )
    said = stack.compose("logs", "--no-log-prefix", "retrain")
    assert '"status": "published"' in said, said
    until(lambda: stack.score("0", "1")["version"] == before + 1, "the new version served")
    assert stack.score("0", "1")["history_length"] > 0


VISITS, PAGE = 300, 10
IMPRESSIONS = VISITS * PAGE


def play(stack: Stack) -> None:
    """Visits of yesterday: pages are scored and shown. What is clicked is mostly among the best
    three tenths of all that was shown, so that a model that ranks like this is told from chance."""
    generator = np.random.default_rng(1)
    day = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    morning = int((day - timedelta(days=1)).timestamp()) + 3600
    pages, probabilities = [], []
    for visit in range(VISITS):
        items = [str(item) for item in generator.choice(1000, PAGE, replace=False)]
        pages.append(items)
        user = str(visit % 200)
        body = {"user_id": user, "item_ids": items, "context": {"position": "0"}}
        answer = stack.client.post(
            "/score/columns", json=body, headers={"X-Request-ID": f"visit-{visit}"}
        )
        assert answer.status_code == 200, answer.text
        probabilities.append(answer.json()["ctr"])
    best = np.array(probabilities) > np.quantile(probabilities, 0.7)
    events = []
    for visit, items in enumerate(pages):
        about = {"user_id": str(visit % 200), "request_id": f"visit-{visit}"}
        shown = {**about, "action": "impression", "ts": morning + 60 * visit}
        events += [{**shown, "item_id": item} for item in items]
        clicked = generator.random(PAGE) < np.where(best[visit], 0.5, 0.05)
        for place in np.flatnonzero(clicked).tolist():
            click = {**about, "action": "click", "ts": morning + 60 * visit + 1 + place}
            events.append({**click, "item_id": items[place]})
    for at in range(0, len(events), 1000):
        answer = stack.client.post("/events", json={"events": events[at : at + 1000]})
        assert answer.status_code == 200, answer.text
        assert not answer.json()["refused"]


def test_the_service_ends_by_itself_when_it_is_asked_to(stack: Stack) -> None:
    """Within its grace, so that it is not killed; and it comes back."""
    stack.compose("stop", "service")
    state = stack.inspect("service")["State"]
    assert state["ExitCode"] == 0
    assert not state["OOMKilled"]
    stack.compose("up", "--detach", "--wait", "service")
    assert stack.score("0", "1")["degraded"] is None

"""The admin API: labels over HTTP, for who knows the key."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from model.contract.labels import LABELS
from service.admin import create_admin
from service.settings import Settings
from tests.support import ROOT, free_port, problem, publish_toy

KEY = "0123456789abcdef"
BEARER = {"Authorization": f"Bearer {KEY}"}
Ask = Callable[..., httpx.Response]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for bias in range(3):
        publish_toy(tmp_path, bias=float(bias))
    return tmp_path


@pytest.fixture
def ask(root: Path) -> Ask:
    """Asks the application, with the key unless other headers are given."""
    app = create_admin(Settings(repository=root, admin_key=KEY))  # type: ignore[arg-type]

    def send(method: str, path: str, **given: Any) -> httpx.Response:
        given.setdefault("headers", BEARER)

        async def one() -> httpx.Response:
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
                return await client.request(method, path, **given)

        return asyncio.run(one())

    return send


def damage(root: Path, number: int) -> None:
    graph = root / "toy" / str(number) / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])


def test_the_versions_are_listed_with_their_labels(ask: Ask, root: Path) -> None:
    """Newest first, with share, age, metrics and lineage, and why a bad one is refused."""
    damage(root, 3)
    ask("POST", "/models/1/canary", json={"share": 0.25})
    found = ask("GET", "/models").json()
    assert found["model"] == "toy"
    three, two, one = found["versions"]
    assert [each["version"] for each in (three, two, one)] == [3, 2, 1]
    assert (three["labels"], three["reason"], three["traffic"]) == ([], "digest", 0)
    assert "model.onnx" in three["trouble"]
    assert (two["labels"], two["traffic"], two["reason"]) == (["stable"], 0.75, None)
    assert (one["labels"], one["traffic"]) == (["canary"], 0.25)
    assert one["metrics"]["test"]["auc"] == 0.75
    assert one["lineage"] == {"run": "bias 0.0"}
    assert 0 <= one["age_seconds"] < 3600


def test_every_change_gives_the_labels_after_it(ask: Ask) -> None:
    """All that the commands do; the log says what, by whom and why."""
    steps: list[tuple[str, str, dict[str, Any] | None, dict[str, Any]]] = [
        ("POST", "/models/1/promote", {"why": "first"}, {"stable": 1}),
        ("POST", "/models/2/canary", {"share": 0.1}, {"canary": 2, "canary_share": 0.1}),
        ("POST", "/models/3/shadow", {"share": 1}, {"shadow": 3, "shadow_share": 1}),
        ("POST", "/models/2/promote", None, {"stable": 2, "canary": None, "previous": [1, 3]}),
        ("POST", "/rollback", {"why": "worse"}, {"stable": 1, "previous": [3]}),
        ("POST", "/models/2/pin", None, {"stable": 2, "pinned": True}),
        ("POST", "/unpin", {}, {"stable": 2, "pinned": False}),
        ("POST", "/models/1/canary", {"share": 0.5, "why": "again"}, {"canary": 1}),
        ("DELETE", "/canary", None, {"canary": None, "canary_share": 0}),
        ("DELETE", "/shadow", None, {"shadow": None}),
        ("POST", "/follow", None, {"stable": None}),
    ]
    for method, path, body, expected in steps:
        given = {} if body is None else {"json": body}
        answer = ask(method, path, **given)
        assert answer.status_code == 200, (path, answer.text)
        labels = answer.json()
        assert {name: labels[name] for name in expected} == expected
        assert labels == ask("GET", "/labels").json()
    assert len(labels["changes"]) == len(steps)
    assert {change["by"] for change in labels["changes"]} == {"admin API"}
    assert [change["why"] for change in labels["changes"]][:5:4] == ["first", "worse"]


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": KEY}, {"Authorization": "Bearer "}, {"Authorization": f"Basic {KEY}"}],
)
def test_without_the_key_nothing_is_done(headers: dict[str, str], ask: Ask, root: Path) -> None:
    """Neither read nor changed, whatever is asked; only that the process lives is said."""
    several = (
        ("GET", "/models"),
        ("POST", "/models/1/promote"),
        ("GET", "/nowhere"),
        ("GET", "/docs"),
    )
    for method, path in several:
        answer = ask(method, path, headers=headers)
        assert answer.status_code == 401
        assert problem(answer)["field"] == "Authorization"
        assert answer.headers["www-authenticate"] == "Bearer"
    assert not (root / "toy" / LABELS).exists()
    assert ask("GET", "/healthz", headers=headers).json() == {"status": "alive"}


@pytest.mark.parametrize("form", ["application/json", "application/x-www-form-urlencoded"])
def test_a_body_that_is_no_json_object_is_told_what_was_expected(ask: Ask, form: str) -> None:
    """What `curl -d` sends by itself is called a form."""
    text = "[]" if form == "application/json" else '{"why": "worse"}'
    answer = ask("POST", "/rollback", content=text, headers={**BEARER, "Content-Type": form})
    said = problem(answer)
    assert (answer.status_code, said["field"]) == (422, "body")
    assert said["detail"] == "A JSON object expected, as Content-Type: application/json"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "field"),
    [
        ("POST", "/models/9/promote", "{}", 404, "version"),
        ("POST", "/models/3/promote", "{}", 409, "version"),  # damaged
        ("POST", "/models/2/promote", "{}", 409, None),  # 1 is pinned
        ("POST", "/rollback", "{}", 409, None),
        ("POST", "/models/one/promote", "{}", 422, "version"),
        ("POST", "/models/-1/promote", "{}", 422, "version"),
        ("POST", "/models/2/shadow", '{"share": 2}', 422, "share"),
        ("POST", "/models/2/shadow", '{"share": "s3cr3t"}', 422, "share"),
        ("POST", "/models/2/shadow", '{"share": NaN}', 422, "share"),
        ("POST", "/models/2/shadow", "{}", 422, "share"),
        ("POST", "/models/2/shadow", "", 422, "body"),
        ("POST", "/models/2/shadow", '{"share": 1, "s3cr3t": 1}', 422, "body"),
        ("POST", "/models/2/shadow", "s3cr3t", 422, "body"),
        ("POST", "/models/1/shadow", '{"share": 1}', 409, None),  # the stable one
        ("GET", "/nowhere", "", 404, None),
        ("GET", "/models/1/promote", "", 405, None),
    ],
)
def test_what_can_not_be_done_is_a_problem(
    method: str, path: str, body: str, status: int, field: str | None, ask: Ask, root: Path
) -> None:
    """Named, not echoed, and the labels stay as they are."""
    assert ask("POST", "/models/1/pin").status_code == 200
    damage(root, 3)
    before = (root / "toy" / LABELS).read_bytes()
    headers = {**BEARER, "Content-Type": "application/json"}
    answer = ask(method, path, content=body, headers=headers)
    assert answer.status_code == status
    assert problem(answer)["field"] == field
    assert "s3cr3t" not in answer.text
    assert (root / "toy" / LABELS).read_bytes() == before


def test_a_refused_version_is_named_with_its_reason(ask: Ask, root: Path) -> None:
    """One of the closed set of reasons stands in the detail; no label makes it served."""
    damage(root, 2)
    answer = ask("POST", "/models/2/canary", json={"share": 0.1})
    assert answer.status_code == 409
    assert problem(answer)["detail"].endswith("(digest)")
    assert not (root / "toy" / LABELS).exists()


def test_labels_that_can_not_be_read_are_a_conflict(ask: Ask, root: Path) -> None:
    """They are not written over."""
    (root / "toy" / LABELS).write_text("{}")
    for method, path in (("GET", "/labels"), ("GET", "/models"), ("POST", "/unpin")):
        answer = ask(method, path)
        assert answer.status_code == 409
        assert LABELS in problem(answer)["detail"]
    assert (root / "toy" / LABELS).read_text() == "{}"


def test_a_repository_that_can_not_be_written_is_a_500_without_details(
    ask: Ask, root: Path
) -> None:
    """What the operator can't help is in the log, not in the answer."""
    (root / "toy" / ".labels.lock").mkdir()
    answer = ask("POST", "/models/1/promote")
    assert answer.status_code == 500
    assert str(root) not in answer.text
    assert problem(answer)["title"] == "Internal error"


def admin(root: Path, *options: str, key: str | None) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if "DINSERVE" not in name}
    if key is not None:
        environment["DINSERVE_ADMIN_KEY"] = key
    command = [sys.executable, "-m", "service", "admin", "--repository", str(root), *options]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("key", [None, "", "15 characters.."])
def test_without_a_key_of_its_own_it_does_not_start(key: str | None, root: Path) -> None:
    """One line says what is missing, and not the key itself; a key that is too short is a setting
    that can't have its value."""
    _, errors = (process := admin(root, key=key)).communicate(timeout=300)
    assert process.returncode == (2 if key else 1)
    assert errors.startswith("error: admin")
    assert len(errors.splitlines()) == 1
    assert "15 characters.." not in errors


def test_the_process_serves_on_its_own_port(root: Path) -> None:
    """A label set there is the labels file's; the key is in no log line."""
    port = free_port()
    process = admin(root, "--port", str(port), key=KEY)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=BEARER) as client:
            for _ in range(600):
                try:
                    client.get("/healthz")
                    break
                except httpx.TransportError:
                    assert process.poll() is None
                    asyncio.run(asyncio.sleep(0.05))
            assert client.post("/models/2/promote", json={"why": "s3cr3t"}).status_code == 200
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=30)
    assert json.loads((root / "toy" / LABELS).read_bytes())["stable"] == 2
    lines = [json.loads(line) for line in errors.splitlines()]
    assert any("stable none to 2" in line["message"] for line in lines)
    assert KEY not in errors

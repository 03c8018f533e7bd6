"""The Dockerfile and the compose file, as far as reading them tells; test_compose.py runs them."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.requirements import requirements
from service.settings import Settings
from service.settings_table import variable
from tests.deploy.compose_file import (
    COMPOSE,
    DOCKERFILE,
    GPU,
    OURS,
    SERVICES,
    copied,
    lineage,
    sent,
    stages,
)
from tests.support import ROOT

TARGETS = ("service", "service-gpu", "training")
ENTRY = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def first_party(*folders: str) -> set[str]:
    """The project's modules that the files of some folders import, their __init__ left out."""
    ours = tuple(PROJECT["tool"]["importlinter"]["root_packages"])
    found = set()
    for path in (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [each.name for each in node.names] if isinstance(node, ast.Import) else []
            found |= {name for name in names if name.split(".")[0] in ours}
    return found


def test_every_image_is_one_that_is_known() -> None:
    """Each stage stands on another one or on the one base; others' images have a version."""
    before = {"${BASE}"}
    for stage, instructions in stages().items():
        if not stage:
            assert instructions == [("ARG", "BASE=python:3.11-slim-bookworm")]
            continue
        assert instructions[0][1].split(" AS ")[0] in before
        before.add(stage)
    assert before.issuperset(TARGETS)
    others = {each["image"] for name, each in SERVICES.items() if name not in OURS}
    assert {image.split(":")[0] for image in others} == {
        "redis",
        "prom/prometheus",
        "grafana/grafana",
    }
    assert all(re.search(r":v?\d", image) for image in others)
    assert "syntax=" not in DOCKERFILE.read_text()


def test_what_is_copied_is_there_and_no_more_is_sent() -> None:
    """Each path that is copied exists and passes .dockerignore, and nothing else does."""
    wanted = sent()
    assert all((ROOT / path).exists() for path in wanted)
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[1] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == {
        each for each in wanted if not any(each.startswith(f"{a}/") for a in wanted)
    }


@pytest.mark.parametrize(
    ("stage", "folders"),
    [
        ("service-source", ("service", "model/contract", "store", "terminal")),
        ("training-source", ("service", "model", "store", "terminal", "training")),
    ],
)
def test_an_image_has_all_that_its_code_imports(stage: str, folders: tuple[str, ...]) -> None:
    """A package of ours that is not copied would fail at start only."""
    paths = copied(stage)
    for module in first_party(*folders):
        path = module.replace(".", "/")
        assert any(path == each or path.startswith(f"{each}/") for each in paths) or (
            f"{path}/__init__.py" in paths
        ), module


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_is_hardened_as_far_as_it_can_be(target: str) -> None:
    """It runs as a user by number, and no secret is in its history."""
    instructions = lineage(target)
    users = [rest for word, rest in instructions if word == "USER"]
    assert users[-1] == "10001:10001"
    assert not any(word == "ADD" for word, _ in instructions)
    for word, rest in (each for stage in stages().values() for each in stage):
        if word in ("ARG", "ENV"):
            assert not re.search(r"(?i)token|password|secret|_key", rest)


@pytest.mark.parametrize("target", TARGETS)
def test_source_comes_after_the_packages_and_depends_on_nothing_of_them(target: str) -> None:
    """So a change of source installs nothing, and one of the revision runs nothing."""
    copies = [rest.split()[0] for word, rest in lineage(target) if word == "COPY"]
    source = "training" if target == "training" else "service"
    assert copies == [f"--from={target}-packages", f"--from={source}-source"]
    installed = lineage(f"{target}-packages")
    assert copied(f"{target}-packages") == ["constraints.txt"]
    assert installed[-1][0] == "RUN"
    assert "-c /lists/constraints.txt" in installed[-1][1]
    late = [word for word, _ in lineage(target)[len(lineage("base")) :]]
    assert "RUN" not in late


def test_the_lists_have_one_runtime_each_and_torch_where_it_trains() -> None:
    """onnxruntime and onnxruntime-gpu are the same module."""
    (made,) = (rest for word, rest in stages()["lists"] if word == "RUN")
    found = dict(re.findall(r"requirements\.py ([\w ]+) > /lists/([\w-]+)\.txt", made))
    lists = {
        name: {
            re.split(r"[\[><=;]", each)[0]
            for each in requirements(ROOT / "pyproject.toml", extras.split())
        }
        for extras, name in found.items()
    }
    assert set(lists) == set(TARGETS)
    for name, packages in lists.items():
        runtimes = {each for each in packages if each.startswith("onnxruntime")}
        assert runtimes == {"onnxruntime-gpu" if name == "service-gpu" else "onnxruntime"}
        assert ("torch" in packages) == (name == "training")
        assert {"numpy", "fastapi"} <= packages
    with pytest.raises(KeyError):
        requirements(ROOT / "pyproject.toml", ["no such extra"])


def test_labels_name_the_version_of_the_project() -> None:
    """The version is that of pyproject.toml; the revision is given."""
    arguments = dict(rest.split("=") for word, rest in stages()["image"] if word == "ARG")
    assert arguments == {"VERSION": PROJECT["project"]["version"], "REVISION": "unknown"}
    labels = " ".join(rest for word, rest in lineage("service") if word == "LABEL")
    for name in ("version=${VERSION}", "revision=${REVISION}", "title=", "licenses=Apache-2.0"):
        assert f"org.opencontainers.image.{name}" in labels


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_gets_no_more_than_it_needs(name: str) -> None:
    """Read-only, without capabilities, limited, and reached through the loopback if at all."""
    each = SERVICES[name]
    assert each["read_only"] is True
    assert each["cap_drop"] == ["ALL"]
    assert each["security_opt"] == ["no-new-privileges:true"]
    assert each["tmpfs"] == ["/tmp:size=256m"]
    assert each["init"] is True
    assert each["mem_limit"]
    assert each["pids_limit"]
    assert each["restart"] == ("no" if name == "first-model" else "unless-stopped")
    assert not {"privileged", "cap_add", "network_mode", "pid", "devices"} & set(each)
    assert all(port.startswith("${PUBLISH:-127.0.0.1}:") for port in each.get("ports", []))
    if "ports" not in each:
        assert each["networks"] == ["inner"]


def test_what_runs_for_ever_has_a_health_check_and_time_to_end() -> None:
    """The service's own is in its image; its container has more time than it takes itself."""
    for name in ("redis", "collector", "prometheus", "grafana"):
        assert SERVICES[name]["healthcheck"]["test"]
    (check,) = (rest for word, rest in lineage("service") if word == "HEALTHCHECK")
    environment = next(
        rest for word, rest in lineage("service") if word == "ENV" and "PORT" in rest
    )
    assert '"8000", "/readyz"' in check
    assert "DINSERVE_PORT=8000" in environment
    grace = int(SERVICES["service"]["stop_grace_period"].removesuffix("s"))
    assert grace > Settings().grace_seconds


def test_the_service_waits_for_nothing_but_reads_only_what_is_written_for_it() -> None:
    """Neither a model nor a Redis that works is needed to start it."""
    service = SERVICES["service"]
    assert service["depends_on"] == {"redis": {"condition": "service_started"}}
    assert service["volumes"] == ["repository:/repository:ro"]


def test_the_example_has_all_that_compose_reads() -> None:
    """With the same defaults, so that a copy of it changes nothing; and so has the page."""
    read: dict[str, str] = {}
    for path in (COMPOSE, GPU):
        for name, default in ENTRY.findall(path.read_text()):
            assert read.setdefault(name, default) == default, name
    lines = (ROOT / ".env.example").read_text().splitlines()
    shown = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert shown == read
    assert {".env", "service.env"} <= set((ROOT / ".gitignore").read_text().split())
    page = (ROOT / "docs/settings.md").read_text().partition("## In containers")[2]
    rows = re.findall(r"^\| `([A-Z_]+)` \| (?:`([^`]*)`|unset) \| \S", page, re.MULTILINE)
    assert sorted(rows) == sorted(read.items())


def test_every_setting_of_the_service_reaches_its_container(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All but those that say where things are; the example has them with their defaults, so that
    to uncomment them changes nothing."""
    fixed = {"repository", "mirror", "redis_url", "host", "port"}
    settings = {
        variable(name, field)
        for name, field in Settings.model_fields.items()
        if name not in fixed and not name.startswith("admin_")
    }
    given = SERVICES["service"]["environment"]
    assert set(given) - {"DINSERVE_REDIS_URL"} == settings
    lines = (ROOT / ".env.example").read_text().splitlines()
    shown = dict(line[1:].split("=", 1) for line in lines if line.startswith("#DINSERVE_"))
    assert set(shown) == {name for name, value in given.items() if value is None}
    for name, value in shown.items():
        monkeypatch.setenv(name, value)
    assert Settings() == Settings.model_construct()


def test_jobs_write_the_keys_that_the_service_reads() -> None:
    """They are handed what decides on keys and how long these live, and what is held to it."""
    for job, names in (
        ("first-model", ["KEY_PREFIX", "HISTORY_DAYS", "ERASED_DAYS"]),
        ("collector", ["KEY_PREFIX"]),
    ):
        given = SERVICES[job]["environment"]
        for name in (f"DINSERVE_{each}" for each in names):
            assert given[name] is SERVICES["service"]["environment"][name] is None


def test_what_is_mounted_from_the_checkout_is_there() -> None:
    """The engine would make an empty folder of what is missing."""
    mounted = [volume for each in SERVICES.values() for volume in each.get("volumes", [])]
    paths = [volume.split(":")[0] for volume in mounted if volume.startswith("./")]
    assert paths == ["./deploy/prometheus", "./deploy/grafana/provisioning"]
    assert all(any((ROOT / path).iterdir()) for path in paths)


def test_settings_that_compose_gives_exist() -> None:
    """A variable that the service does not know would change nothing."""
    known = {variable(name, field) for name, field in Settings.model_fields.items()}
    given = {name for each in OURS.values() for name in each.get("environment", {})}
    given |= set(gpu()["environment"])
    assert {name for name in given if name.startswith("DINSERVE_")} <= known


def gpu() -> dict[str, Any]:
    (service,) = yaml.safe_load(GPU.read_text())["services"].items()
    assert service[0] == "service"
    overlay: dict[str, Any] = service[1]
    return overlay


def test_the_gpu_overlay_asks_for_a_gpu() -> None:
    """Its own target, the CUDA provider, and a device."""
    overlay = gpu()
    assert overlay["build"]["target"] in stages()
    assert overlay["environment"]["DINSERVE_PROVIDER"] == "cuda"
    (device,) = overlay["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


def test_commands_are_files_and_modules_that_the_images_have() -> None:
    """What compose starts is what the Dockerfile copies."""
    for name, each in OURS.items():
        words = each.get("command", [])
        paths = [word.removeprefix("/app/") for word in words if word.startswith("/app/")]
        assert {Path(path).as_posix() for path in paths} <= set(
            copied(f"{each['build']['target']}-source")
        ), name

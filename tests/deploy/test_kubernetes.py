"""The Kubernetes manifests, as kustomize builds them: valid, hardened, and about what is there."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from service.settings import Settings
from tests.exported import series
from tests.support import ROOT
from tests.training.test_job import command

FOLDER = ROOT / "deploy/kubernetes"
OVERLAYS = ("cpu", "gpu", "objects")
OLDEST, NEWEST = "1.30", "1.37"  # the first with a preStop that sleeps
Manifest = dict[str, Any]


@pytest.fixture(scope="module", params=OVERLAYS)
def built(request: pytest.FixtureRequest) -> list[Manifest]:
    """What an overlay is, as `kubectl apply -k` would send it."""
    yaml = pytest.importorskip("yaml")
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl: it builds the overlays")
    words = ["kubectl", "kustomize", str(FOLDER / "overlays" / request.param)]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    return list(yaml.safe_load_all(ended.stdout))


def one(built: list[Manifest], kind: str, name: str = "dinserve") -> Manifest:
    [found] = [m for m in built if m["kind"] == kind and m["metadata"]["name"] == name]
    return found


def templates(built: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """The pods that it makes: each template by what makes it."""
    for manifest in built:
        spec = manifest.get("spec", {})
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if "template" in spec:
            yield f"{manifest['kind']}/{manifest['metadata']['name']}", spec["template"]


def settings_of(built: list[Manifest]) -> dict[str, str]:
    [found] = [m["data"] for m in built if m["kind"] == "ConfigMap"]
    return dict(found)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_manifests_are_valid(built: list[Manifest], version: str) -> None:
    """By the schemas of the oldest and the newest version, which know every field."""
    if importlib.util.find_spec("kubernetes_validate") is None:
        if os.environ.get("CI"):
            pytest.fail("no kubernetes-validate: install the dev extra")
        pytest.skip("no kubernetes-validate: install the dev extra")
    import kubernetes_validate

    for manifest in built:
        kubernetes_validate.validate(manifest, version, strict=True)
    kinds = {manifest["kind"] for manifest in built}
    assert kinds >= {
        *("Deployment", "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy"),
        *("ServiceAccount", "Service", "ConfigMap", "CronJob", "PersistentVolumeClaim"),
    }


def test_every_pod_is_hardened(built: list[Manifest]) -> None:
    """No root, no writing but to its volumes, no capabilities, no token, limited memory; and no
    variables of Services, of which DINSERVE_PORT would be one."""
    found = dict(templates(built))
    assert set(found) == {
        *("Deployment/dinserve", "Deployment/dinserve-collector", "CronJob/dinserve-retrain")
    }
    for pod in (template["spec"] for template in found.values()):
        assert pod["serviceAccountName"] == "dinserve"
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not any("hostPath" in volume for volume in pod["volumes"])
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]
            assert container["resources"]["requests"]["cpu"]
    assert one(built, "ServiceAccount")["automountServiceAccountToken"] is False
    assert not [m for m in built if m["kind"] in {"Role", "ClusterRole", "RoleBinding"}]


def test_what_selects_pods_finds_them(built: list[Manifest]) -> None:
    """The Service, both Deployments, the budget and a policy for each pod."""
    labels = {name: template["metadata"]["labels"] for name, template in templates(built)}

    def selected(selector: Manifest) -> set[str]:
        assert selector
        return {name for name, has in labels.items() if selector.items() <= has.items()}

    service = {"Deployment/dinserve"}
    assert selected(one(built, "Service")["spec"]["selector"]) == service
    budget = one(built, "PodDisruptionBudget")["spec"]
    assert selected(budget["selector"]["matchLabels"]) == service
    for manifest in (m for m in built if m["kind"] == "Deployment"):
        own = f"Deployment/{manifest['metadata']['name']}"
        assert selected(manifest["spec"]["selector"]["matchLabels"]) == {own}
    policies = [m["spec"] for m in built if m["kind"] == "NetworkPolicy"]
    covered = [selected(policy["podSelector"]["matchLabels"]) for policy in policies]
    assert sorted(name for some in covered for name in some) == sorted(labels)
    assert all(set(policy["policyTypes"]) == {"Ingress", "Egress"} for policy in policies)


def test_names_lead_somewhere(built: list[Manifest]) -> None:
    """Volumes, claims, settings and ports that are named exist."""
    claims = {m["metadata"]["name"] for m in built if m["kind"] == "PersistentVolumeClaim"}
    maps = {m["metadata"]["name"] for m in built if m["kind"] == "ConfigMap"}
    for _, template in templates(built):
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        for volume in volumes.values():
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims
        for container in template["spec"]["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
            for source in container.get("envFrom", []):
                if "configMapRef" in source:
                    assert source["configMapRef"]["name"] in maps
            ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                if probe in container:
                    assert container[probe]["httpGet"]["port"] in ports
            told = template["metadata"].get("annotations", {}).get("prometheus.io/port")
            assert told is None or int(told) in ports.values()
    [port] = one(built, "Service")["spec"]["ports"]
    [container] = one(built, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert port["targetPort"] in {each["name"] for each in container["ports"]}
    assert {each["namespace"] for each in (m["metadata"] for m in built)} == {"dinserve"}


def test_settings_are_the_service_s(built: list[Manifest], monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes each of them, and listens where its port is."""
    given = settings_of(built)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    known = {f"DINSERVE_{field}".upper() for field in Settings.model_fields} | {"DINSERVE_RUNS"}
    assert set(given) <= known
    [container] = one(built, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert [port["containerPort"] for port in container["ports"]] == [settings.port]
    [mount] = [each for each in container["volumeMounts"] if each["name"] == "repository"]
    assert mount["mountPath"] == str(settings.repository)
    # Seen read-only where it is shared, written where it is a copy of an object store.
    assert mount.get("readOnly", False) == (settings.mirror is None)
    assert settings.workers == 1 or settings.provider != "cuda"
    on_gpu = "nvidia.com/gpu" in container["resources"]["limits"]
    assert on_gpu == (settings.provider == "cuda") == ("gpu" in container["image"])


def test_the_collector_s_command_knows_its_options(
    built: list[Manifest], capsys: pytest.CaptureFixture[str]
) -> None:
    """Unknown ones are an error even before --help. Its metrics are told on the port of its pod."""
    pod = one(built, "Deployment", "dinserve-collector")["spec"]
    assert (pod["replicas"], pod["strategy"]) == (1, {"type": "Recreate"})
    [container] = pod["template"]["spec"]["containers"]
    python, module, name, *words = container["args"]
    assert (python, module, name) == ("python", "-m", "training")
    assert command(*words, "--help") == 0
    [port] = container["ports"]
    assert words[words.index("--metrics-port") + 1] == str(port["containerPort"])
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {words[words.index("--logs") + 1], words[words.index("--repository") + 1]} <= mounts


def test_probes_ask_what_the_service_answers(built: list[Manifest]) -> None:
    """Life is not a model's: a pod that waits for its first one is not killed."""
    [container] = one(built, "Deployment")["spec"]["template"]["spec"]["containers"]
    paths = {
        probe: container[f"{probe}Probe"]["httpGet"]["path"]
        for probe in ("startup", "liveness", "readiness")
    }
    assert paths == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}


def test_the_end_has_time(built: list[Manifest]) -> None:
    """Kubernetes waits longer than the pause before the end and the service's own grace."""
    pod = one(built, "Deployment")["spec"]["template"]["spec"]
    [container] = pod["containers"]
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pause > 0
    assert pod["terminationGracePeriodSeconds"] > pause + Settings().grace_seconds


def test_it_scales_by_a_metric_that_is_there(built: list[Manifest]) -> None:
    """The Pods metric is made by the adapter's rule from what the service exports."""
    yaml = pytest.importorskip("yaml")
    [rule] = yaml.safe_load((FOLDER / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    assert set(re.findall(r"dinserve_\w+", rule["seriesQuery"] + rule["metricsQuery"])) <= series()
    spec = one(built, "HorizontalPodAutoscaler")["spec"]
    deployment = one(built, "Deployment")
    assert "replicas" not in deployment["spec"]  # each apply would undo the autoscaler's number
    assert spec["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert [m["pods"]["metric"]["name"] for m in spec["metrics"] if m["type"] == "Pods"] == [
        rule["name"]["as"]
    ]
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    by_cpu = [m for m in spec["metrics"] if m["type"] == "Resource"]
    assert bool(by_cpu) == ("nvidia.com/gpu" not in container["resources"]["limits"])


def test_a_changed_setting_is_rolled_out(built: list[Manifest]) -> None:
    """Settings have a name of their contents, and both pods that read them name it."""
    [settings] = [m["metadata"]["name"] for m in built if m["kind"] == "ConfigMap"]
    assert re.fullmatch(r"dinserve-settings-[a-z0-9]{10}", settings)
    named = json.dumps([template for _, template in templates(built)]).count(settings)
    assert named == 2

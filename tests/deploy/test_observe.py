"""What ships for Prometheus and Grafana: sound, and about metrics that are really exported."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.exported import collector_text, families, promtool, retrain_text, series, service_text
from tests.support import ROOT

PROMETHEUS = ROOT / "deploy/prometheus"
ALERTS = PROMETHEUS / "alerts.yml"
GRAFANA = ROOT / "deploy/grafana/provisioning"
DASHBOARD = GRAFANA / "dashboards/dinserve.json"
PAGE = ROOT / "docs/observe.md"


def rules(alerts: Path = ALERTS) -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml")
    groups = yaml.safe_load(alerts.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def asked() -> list[str]:
    """The expressions of the dashboard."""
    panels = [
        target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", [])
    ]
    return panels + [each["expr"] for each in dashboard()["annotations"]["list"]]


def names(expression: str) -> set[str]:
    """The metrics in an expression: words with our prefixes, those in strings aside."""
    plain = re.sub(r'"[^"]*"', "", expression)
    return set(re.findall(r"\b(?:dinserve|process|python)[_:][a-zA-Z0-9_:]+", plain))


def test_promtool_takes_the_configuration_and_the_rules() -> None:
    """Syntax, and every template of an annotation."""
    promtool("check", "config", str(PROMETHEUS / "prometheus.yml"))
    assert f"{len(rules())} rules found" in promtool("check", "rules", str(ALERTS))


@pytest.mark.parametrize("file", ["alerts_test.yml", "alerts_days_test.yml"])
def test_alerts_fire_when_they_should(file: str) -> None:
    """Promtool's unit tests, in which nothing fires while all is well."""
    promtool("test", "rules", str(PROMETHEUS / file))


def test_every_alert_has_a_test_and_a_place_in_the_docs() -> None:
    """By its name in one of promtool's tests, and in docs/observe.md; the page names no other."""
    tests = "".join(
        (PROMETHEUS / f).read_text() for f in ("alerts_test.yml", "alerts_days_test.yml")
    )
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    for alert in alerts:
        assert re.search(rf"\b{alert}\b", tests), alert
    assert set(re.findall(r"\bDinserve[A-Za-z]+", PAGE.read_text())) == alerts


def test_rules_ask_for_what_is_exported() -> None:
    """Or for what another rule records."""
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for rule in rules():
        unknown = names(rule["expr"]) - series() - recorded
        assert not unknown, (rule, unknown)
        assert names(rule["expr"])
        for histogram, le in re.findall(r'(\w+_bucket)\{le="([^"]+)"\}', rule["expr"]):
            assert f'{histogram}{{le="{le}"}} ' in service_text()


def test_the_dashboard_asks_for_what_is_exported() -> None:
    """Or for what a rule records; and it shows every metric of the service and the collector."""
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    shown: set[str] = set()
    for expression in asked():
        unknown = names(expression) - series() - recorded
        assert not unknown, (expression, unknown)
        shown |= names(expression)
    for text in (service_text(), collector_text()):
        for name in families(text):
            if name.startswith("dinserve_"):
                assert any(each.startswith(name) for each in shown), name


def test_the_dashboard_s_expressions_are_promql(tmp_path: Path) -> None:
    """As rules they pass promtool; Grafana's variables have values of theirs."""
    made = []
    for at, expression in enumerate(asked()):
        plain = expression.replace("$__rate_interval", "1m").replace("$job", ".*")
        assert "$" not in plain
        made.append({"record": f"dashboard:{at}", "expr": plain})
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": made}]}))
    assert f"{len(made)} rules found" in promtool("check", "rules", str(file))


def test_the_dashboard_is_whole() -> None:
    """Every panel has a number of its own, a title, targets and a place that no other covers; all
    ask the data source that is provisioned, by its variable."""
    yaml = pytest.importorskip("yaml")
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 30
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["title"]
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert panel["targets"]
    [source] = yaml.safe_load((GRAFANA / "datasources/prometheus.yml").read_text())["datasources"]
    [variable, _] = dashboard()["templating"]["list"]
    assert variable["current"]["value"] == source["uid"]
    [provider] = yaml.safe_load((GRAFANA / "dashboards/dinserve.yml").read_text())["providers"]
    assert provider["options"]["path"].endswith("provisioning/dashboards")


def test_the_page_of_metrics_is_what_is_exported() -> None:
    """docs/observe.md lists each metric of service, collector and retraining once, and no other."""
    listed = re.findall(r"^\| `(dinserve_\w+)", PAGE.read_text(), re.M)
    exported = {
        name
        for text in (service_text(), collector_text(), retrain_text())
        for name in families(text)
        if name.startswith("dinserve_")
    }
    assert sorted(listed) == sorted(exported)

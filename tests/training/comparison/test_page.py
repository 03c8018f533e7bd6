"""The page, by reports that are made by hand."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.training.comparison import made
from training.comparison import page
from training.comparison.paired import over_seeds

NAMES = {
    "gauc": "GAUC",
    "rela_impr.gauc": "RelaImpr of GAUC",
    "auc": "AUC",
    "rela_impr.auc": "RelaImpr of AUC",
    "log_loss": "log loss",
    "normalised_entropy": "NE",
    "ece": "ECE",
}


def tables(report: dict[str, Any]) -> dict[str, list[dict[str, str]]]:
    """The tables of the paired tests by their heading: of each row the cells by the column."""
    text = "".join(part for task in report["tasks"] for part in page._tests(report, task))
    every = re.findall(r"<h3>(.*?)</h3><div class=wide><table>(.*?)</table>", text)
    found = {}
    for heading, table in every:
        heads, *rows = (re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in table.split("<tr>")[1:])
        found[heading] = [dict(zip(heads, row, strict=True)) for row in rows]
    return found


def test_every_metric_of_every_task_is_tested_over_seeds() -> None:
    """GAUC over users too; against the baseline and against the best, each in the metric's own
    form."""
    report = made.report()
    found, best = tables(report), report["best"]
    rivals = {"baseline": "base", "best": best}
    assert set(found) == {
        f"{task}, less {name} ({rival})"
        for task in ("click", "buy")
        for name, rival in rivals.items()
    }
    for table in found.values():
        heads = ["model", *(f"{name}, over seeds" for name in NAMES.values())]
        heads.insert(2, "GAUC, over users")
        assert list(table[0]) == heads
    [din] = found["buy, less baseline (base)"]
    for key, name in NAMES.items():
        of_buy = ".".join((*key.split(".")[:-1], "buy", key.split(".")[-1]))
        ours, theirs = (report["models"][x]["metrics"][of_buy]["values"] for x in ("DIN", "base"))
        expected = over_seeds(ours, theirs)
        assert expected is not None
        shown = format(expected.difference, "+.1%" if "rela_impr" in key else "+.4f")
        assert din[f"{name}, over seeds"].startswith(f"{shown}<small>")
        assert f"p = {expected.p:.2g}" in din[f"{name}, over seeds"]
    assert " to " in din["GAUC, over users"]


def test_one_seed_leaves_the_test_over_users() -> None:
    """There is no other column."""
    for table in tables(made.report(seeds=1)).values():
        assert [list(row) for row in table] == [["model", "GAUC, over users"]] * len(table)


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        (made.METRICS, "GAUC"),
        (("auc", "log_loss", "ece"), "AUC"),
        (("log_loss", "ece"), "log loss"),
    ],
)
def test_what_the_best_is_best_by_is_said(measured: tuple[str, ...], said: str) -> None:
    """GAUC where the test labels define it; of the first task, which is named where there are
    more. The best is the first of each table."""
    both, one = (made.report(tasks, measured=measured) for tasks in (("click", "buy"), ("click",)))
    found = {label: model["metrics"] for label, model in both["models"].items()}
    pick = min if said == "log loss" else max
    best = pick(found, key=lambda label: found[label][measured[0]]["mean"])
    assert f"the best by mean test {said} of click is <b>{best}</b>" in page._what(both)
    assert f"the best by mean test {said} is <b>{one['best']}</b>" in page._what(one)
    [first, *_] = page._quality(both, "click")[1].split("<tr><td>")[1:]
    assert first.startswith(best)


@pytest.mark.parametrize("tasks", [("click",), ("click", "buy"), ("click", "buy", "return")])
def test_each_task_has_its_tests_and_plots(tasks: tuple[str, ...]) -> None:
    """Reliability, GAUC by length of the history and the lift, no two alike, under the task's name
    where there are several; paired tests too."""
    text = page.html(made.report(tasks))
    images = re.findall(r'<img alt="(.*?)" src="(.*?)"', text)
    for alt in ("Mean label", "Test GAUC by", "Difference of GAUC"):
        of_this = {source for shown, source in images if shown.startswith(alt)}
        assert len(of_this) == len(tasks)
    for task in tasks:
        several = len(tasks) > 1
        assert text.count(f"<h3>{task}</h3>") == 4 * several  # quality, and the three plots
        less = f"{task}, less" if several else "Less"
        assert text.count(f"<h3>{less} baseline (base)</h3>") == 1


def test_a_task_without_gauc_is_told_beside_those_with() -> None:
    """Its plots give way to a sentence, and words on plots stay where there are some."""
    report = made.report()
    report["history_bins"]["buy"] = [
        {**each, "users_with_both_labels": 0} for each in report["history_bins"]["buy"]
    ]
    text = page.html(report)
    assert text.count("No user has test labels of both classes") == 2
    assert text.count("ranked among themselves") == 1
    none = page.html(made.report(measured=("auc", "log_loss", "ece")))
    assert none.count("No user has test labels of both classes") == 4
    assert "ranked among themselves" not in none

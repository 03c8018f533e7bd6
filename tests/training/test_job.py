"""The commands from raw files to a published version, and what they say when they can't."""

from __future__ import annotations

import importlib
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from rich.console import Console

import training.__main__
from model.contract.repository import Repository
from tests.support import ROOT
from tests.training.test_chunks import in_row_groups, spoil
from training import export, metrics, state
from training.__main__ import main
from training.logs import Logs
from training.run import Run

ONE = ("--threads", "1")
QUICK = ("--set", "dim=4", "--set", "head=[8]", "--set", "size=64", "--set", "evaluations=2")
SLOW = ("--set", "size=32", "--set", "evaluations=10", "--set", "epochs=1")


def command(*arguments: object) -> int:
    """Run a command in this process; its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["training", *map(str, arguments)])
        patch.setenv("COLUMNS", "250")
        with pytest.raises(SystemExit) as left:
            main()
    return int(left.value.code or 0)


@pytest.fixture(scope="module")
def shop_run(shop_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the shop's prepared logs in data/ and a finished run in run/."""
    folder = tmp_path_factory.mktemp("job")
    source = ("--source", "parquet", "--path", shop_folder, "--schema", shop_folder / "schema.toml")
    assert command("prepare", *source, "--out", folder / "data") == 0
    data = ("--data", folder / "data", "--out", folder / "run")
    assert command("fit", *data, *ONE, *QUICK, "--set", "attention=[6]") == 0
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared synthetic logs."""
    folder = tmp_path_factory.mktemp("world")
    assert command("prepare", "--source", "synthetic", "--users", 20, "--out", folder) == 0
    return folder


def about(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize(
    ("source", "first"),
    [
        ("parquet --path {shop} --schema {shop}/schema.toml", "read kB"),
        ("synthetic --users 20", "draw events"),
    ],
)
def test_prepare_shows_its_stages(
    shop_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, first: str
) -> None:
    """On a terminal: a bar for reading or drawing, for arranging and for writing, to their ends."""
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, force_interactive=True, width=100)
    monkeypatch.setattr(training.__main__, "console", terminal)
    words = source.format(shop=shop_folder).split()
    assert command("prepare", "--out", tmp_path, "--source", *words) == 0
    lines = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", screen.getvalue()).splitlines()
    bars = [line for line in lines if re.search("[\u2501\u2578]", line)]
    last = {re.split("[\u2501\u2578]", line)[0].strip(): line for line in bars}
    assert list(last) == [first, "arrange", "write rows"]
    for stage in (first, "write rows"):
        done, total = last[stage].split()[-4 if "/s" in last[stage] else -3].split("/")
        assert done == total
    tables = ("events", "items", "users")
    rows = sum(len(pl.read_parquet(tmp_path / f"{name}.parquet")) for name in tables)
    assert f" {rows:,}/{rows:,} " in last["write rows"]


def test_predictions_are_one_row_per_test_impression(
    shop_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With two tasks: user, item, label and probability of each, from which the metrics follow."""
    path = tmp_path / "predictions.parquet"
    assert command("evaluate", "--run", shop_run / "run", "--predictions", path) == 0
    printed = capsys.readouterr().err
    found = pl.read_parquet(path)
    names = ["user", "item", "click_label", "click_probability"]
    assert found.columns == [*names, "buy_label", "buy_probability"]
    events = pl.read_parquet(shop_run / "data" / "events.parquet")
    expected = events.filter(pl.col("split") == "test").select("user_id", "item_id", "click", "buy")
    raw = found.select(user_id="user", item_id="item", click="click_label", buy="buy_label")
    assert raw.equals(expected)
    user = found["user"].to_numpy()
    for task, prefix in (("click", ""), ("buy", "buy.")):
        label, probability = (found[f"{task}_{n}"].to_numpy() for n in ("label", "probability"))
        assert ((probability > 0) & (probability < 1)).all()
        measured = metrics.all_metrics(user, label, probability)
        written = about(shop_run / "run")["metrics"]["test"]
        for name, value in measured.items():
            assert written[prefix + name] == pytest.approx(value, abs=1e-6)
            if name != "impressions":
                assert f"{value:.4f}" in printed


def test_a_large_world_is_written_chunk_by_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What prepare says and writes is of the same form."""
    monkeypatch.setattr("training.world.CHUNK", 10)
    assert command("prepare", "--source", "synthetic", "--users", 12, "--out", tmp_path) == 0
    said = "2,640 events of 12 users and 1,000 items; impressions: 1,920 train, 240 validation"
    assert said in capsys.readouterr().err
    assert len(Logs.read(tmp_path)) == 2640


def test_logs_larger_than_a_shard_are_trained_shard_by_shard(
    shop_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run ends like any other, without its shards, and is evaluated alike, row by row too."""
    data, run = shop_run / "data", tmp_path / "run"
    sharded = ("--set", "attention=[6]", "--set", "shard=300")
    assert command("fit", "--data", data, "--out", run, *ONE, *QUICK, *sharded) == 0
    assert re.search(r"waiting for data \d+\.\d\d% of the time", capsys.readouterr().err)
    assert not (run / "shards").exists()
    written, whole = about(run), about(shop_run / "run")
    assert written["progress"]["impressions"] == whole["progress"]["impressions"]
    assert written["learnt_until"] == whole["learnt_until"]
    for split, values in written["metrics"].items():
        assert values["impressions"] == whole["metrics"][split]["impressions"]
    rows = {}
    for name, folder in (("sharded", run), ("whole", shop_run / "run")):
        path = tmp_path / f"{name}.parquet"
        assert command("evaluate", "--run", folder, "--predictions", path) == 0
        rows[name] = pl.read_parquet(path)
    names = ["user", "item", "click_label", "buy_label"]
    assert rows["sharded"].select(names).equals(rows["whole"].select(names))
    label, probability = (rows["sharded"][f"click_{n}"] for n in ("label", "probability"))
    loss = metrics.log_loss(label.to_numpy(), probability.to_numpy())
    assert written["metrics"]["test"]["log_loss"] == pytest.approx(loss, abs=1e-6)
    assert [path.name for path in run.iterdir() if path.name.startswith(".shards")] == []


def test_a_row_group_that_cannot_be_read_stops_or_is_left_out(
    shop_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default the job ends with its name; asked to it goes on, and says what it left out."""
    data = tmp_path / "data"
    spoil(in_row_groups(Logs.read(shop_run / "data"), data), 3)
    fit = ("fit", "--data", data, "--out", tmp_path / "run", *ONE, *QUICK, "--set", "attention=[6]")
    assert command(*fit) == 1
    said = capsys.readouterr().err
    assert f"{data / 'events.parquet'}: row group 3: expected readable rows" in said
    assert not (tmp_path / "run").exists()
    assert command(*fit, "--unreadable", "skip") == 0
    left_out = "left out: 100 events in row groups that can't be read (3)"
    assert left_out in capsys.readouterr().err
    assert command("evaluate", "--run", tmp_path / "run") == 1
    assert command("evaluate", "--run", tmp_path / "run", "--unreadable", "skip") == 0
    assert left_out in capsys.readouterr().err
    assert about(tmp_path / "run")["unreadable"] == {"3": 100}
    assert command(*fit, "--unreadable", "perhaps") == 2


def test_a_run_becomes_a_version_that_a_service_may_serve(
    shop_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every group and kind of field, two tasks: digests, encoding and golden scores hold."""
    assert command("export", "--run", shop_run / "run", "--repository", tmp_path) == 0
    assert f"published {tmp_path / 'shop' / '1'}; largest" in capsys.readouterr().err
    bundle = Repository.find(tmp_path).open(1)
    bundle.check_encoding()
    assert bundle.golden.batch.users == 5
    assert bundle.golden.logits.shape[1] == 2
    assert bundle.golden.logits.std() > 0
    session = export.session(bundle.graph.read_bytes())
    assert bundle.check_scores(lambda batch: export.run(session, batch), 1e-5) <= 1e-5
    written = about(shop_run / "run")
    histogram = written["score_histogram"]
    assert bundle.metrics == {**written["metrics"], "score_histogram": histogram}
    assert list(histogram) == list(bundle.schema.tasks)
    shown = written["metrics"]["validation"]["impressions"]
    assert all(sum(counts) == shown for counts in histogram.values())
    assert bundle.manifest["lineage"]["logs"] == written["logs"]
    state.find(bundle.folder.parent, bundle.manifest["lineage"]["state"])


def test_one_task_needs_no_prefix(world: Path, tmp_path: Path) -> None:
    """The columns are user, item, label and probability."""
    run, path = tmp_path / "run", tmp_path / "predictions.parquet"
    data = ("--data", world, "--out", run)
    assert command("fit", *data, "--model", "base", *ONE, *QUICK) == 0
    assert command("evaluate", "--run", run, "--predictions", path) == 0
    found = pl.read_parquet(path)
    assert found.columns == ["user", "item", "label", "probability"]
    measured = metrics.all_metrics(*(found[n].to_numpy() for n in ("user", *found.columns[2:])))
    assert about(run)["metrics"]["test"] == pytest.approx(measured, abs=1e-6)


def test_a_fit_that_was_killed_goes_on_to_the_same_run(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """kill -9 after a checkpoint, the same command again: the weights of an undisturbed run."""
    fit = ("fit", "--data", world, *ONE, *QUICK, *SLOW)
    process = subprocess.Popen(
        [sys.executable, "-m", "training", *map(str, fit), "--out", str(tmp_path / "killed")],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    try:
        while process.poll() is None and not list((tmp_path / "killed").glob("checkpoint-*")):
            time.sleep(0.01)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    for part in ("evaluate", "export"):
        where = ("--repository", tmp_path) if part == "export" else ()
        assert command(part, "--run", tmp_path / "killed", *where) == 1
        assert "not trained to the end; run fit again" in capsys.readouterr().err
    for name in ("killed", "whole"):
        assert command(*fit, "--out", tmp_path / name) == 0
    one, two = ((tmp_path / n / "weights.safetensors").read_bytes() for n in ("killed", "whole"))
    assert one == two
    for key in ("metrics", "calibration"):
        assert about(tmp_path / "killed")[key] == about(tmp_path / "whole")[key]
    assert not list((tmp_path / "killed").glob("*checkpoint*"))


def test_a_finished_run_is_not_trained_again(
    shop_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command once more: it says so, prints the run's results and leaves its files."""
    run = tmp_path / "run"
    shutil.copytree(shop_run / "run", run)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    fit = ("fit", "--data", shop_run / "data", "--out", run, *ONE, *QUICK)
    assert command(*fit, "--set", "attention=[6]") == 0
    printed = capsys.readouterr().err
    assert f"{run}: this run is finished; nothing was trained" in printed
    for split in ("validation", "test"):
        assert f"{about(run)['metrics'][split]['auc']:.4f}" in printed
    assert "best at step" in printed
    assert command(*fit, "--set", "attention=[7]") == 1
    assert "holds another run: attention is [6] and not [7]" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_run_is_compared_with_a_baseline(
    shop_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """RelaImpr of each task's AUC and GAUC over the baseline's stored ones, if above chance."""
    base = tmp_path / "base"
    shutil.copytree(shop_run / "run", base)
    written, own = about(base), about(shop_run / "run")["metrics"]["test"]
    stored = {"auc": 0.6, "gauc": 0.5, "log_loss": 0.7, "buy.auc": 0.55}
    written["metrics"]["test"] = stored
    (base / "run.json").write_text(json.dumps(written))
    assert command("evaluate", "--run", shop_run / "run", "--baseline", base) == 0
    auc, buy = (own[name] - 0.5 for name in ("auc", "buy.auc"))
    expected = f"auc {auc / 0.1 - 1:+.2%}, buy.auc {buy / 0.05 - 1:+.2%}"
    assert f"RelaImpr over {base}: {expected}\n" in capsys.readouterr().err


def test_a_run_is_trained_by_one_process_at_a_time(
    shop_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two would write over each other's checkpoints; the second is told, and the run goes on."""
    fit = ("fit", "--data", shop_run / "data", "--out", tmp_path / "run", *ONE, *QUICK)
    with Run(tmp_path / "run").alone():
        assert command(*fit) == 1
        assert f"{tmp_path / 'run'}: another process trains this run" in capsys.readouterr().err
        assert list((tmp_path / "run").iterdir()) == []
    assert command(*fit) == 0


def test_a_folder_of_another_run_is_refused(
    shop_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other settings or other logs at the same place: the error says which."""
    shutil.copytree(shop_run, tmp_path, dirs_exist_ok=True)
    written = about(tmp_path / "run") | {"data": str(tmp_path / "data")}
    (tmp_path / "run" / "run.json").write_text(json.dumps(written))
    fit = ("fit", "--data", tmp_path / "data", "--out", tmp_path / "run", *ONE, *QUICK)
    fit = (*fit, "--set", "attention=[6]")
    assert command(*fit, "--seed", 1) == 1
    assert "holds another run: seed is 0 and not 1; choose another --out" in capsys.readouterr().err
    users = pl.read_parquet(tmp_path / "data" / "users.parquet")
    users[1:].write_parquet(tmp_path / "data" / "users.parquet")
    assert command(*fit) == 1
    assert re.search('run: logs is "\\w+" and not "\\w+"; choose', capsys.readouterr().err)


def no_test(folder: Path) -> None:
    events = pl.read_parquet(folder / "events.parquet")
    split = pl.when(pl.col("split").is_not_null()).then(pl.lit("train")).alias("split")
    events.with_columns(split).write_parquet(folder / "events.parquet")


def a_long_id(folder: Path) -> None:
    items = pl.read_parquet(folder / "items.parquet")
    more = items[:1].with_columns(pl.lit("x" * 300).alias("item_id"))
    pl.concat([items, more]).write_parquet(folder / "items.parquet")


def another_schema(folder: Path) -> None:
    text = (folder / "schema.toml").read_text(encoding="utf-8")
    (folder / "schema.toml").write_text(text.replace("min_count = 3", "min_count = 2"))


def other_logs(folder: Path) -> None:
    """base/ is a run that was trained on other logs than run/."""
    base = folder.parent / "base"
    shutil.copytree(folder.parent / "run", base)
    (base / "run.json").write_text(json.dumps(about(base) | {"logs": "others"}))


def prepared_anew(folder: Path) -> None:
    """The logs that run/ was trained on are no longer at their place."""
    run = folder.parent / "run"
    (run / "run.json").write_text(json.dumps(about(run) | {"logs": "before"}))


def unfinished(folder: Path) -> None:
    """base/ is a run that has not ended."""
    base = folder.parent / "base"
    shutil.copytree(folder.parent / "run", base)
    kept = {name: value for name, value in about(base).items() if name != "metrics"}
    (base / "run.json").write_text(json.dumps(kept))


def broken_schema(folder: Path) -> None:
    (folder / "schema.toml").write_text("name = ")


def schema_with(more: str) -> Callable[[Path], None]:
    """The schema has these fields too."""

    def spoil(folder: Path) -> None:
        text = (folder / "schema.toml").read_text(encoding="utf-8")
        (folder / "schema.toml").write_text(f"{text}\n{more}", encoding="utf-8")

    return spoil


@pytest.mark.parametrize(
    ("spoil", "arguments", "expected"),
    [
        (None, "fit --data none --out out", "schema.toml"),
        (broken_schema, "fit --data data --out out", "schema.toml: file: expected valid TOML"),
        (no_test, "fit --data data --out out", "impressions with split test"),
        (a_long_id, "fit --data data --out out", "item_id: expected a string of 1 to 256"),
        (None, "fit --data data --out out --model other", "--model other: expected one of lr, fnn"),
        (None, "fit --data data --out out --set colour=red", "--set colour: expected an option"),
        (
            None,
            "fit --data data --out out --set head=[]",
            "--set head: expected a list of integers",
        ),
        (None, "fit --data data --out out --set task_weights=[1]", "for each task: click, buy"),
        (
            None,
            "fit --data data --out out --model mmoe --set product_of=['buy']",
            "--set product_of: expected for buy one of click, not 'buy'",
        ),
        (None, "evaluate --run none", "none: no readable run.json"),
        (
            None,
            "evaluate --run none --predictions no/such.parquet",
            "--predictions no/such.parquet: expected a file in a folder that is there",
        ),
        (None, "evaluate --run none --predictions data", "--predictions data: expected a file"),
        (another_schema, "evaluate --run run --data data", "trained on another schema"),
        (prepared_anew, "evaluate --run run", "does not hold the logs it was trained on"),
        (None, "evaluate --run run --baseline none", "none: no readable run.json"),
        (other_logs, "evaluate --run run --baseline base", "base: measured on other logs than run"),
        (unfinished, "evaluate --run run --baseline base", "base: not trained to the end"),
        (None, "export --run none --repository repository", "none: no readable run.json"),
        (None, "prepare --source amazon-csv --path none --out out", "none.events.csv.gz"),
        (
            None,
            "prepare --source parquet --path none --schema data/schema.toml --out out",
            "none: events: expected a table ending in parquet, csv, csv.gz",
        ),
        (
            None,
            "prepare --source parquet --path data --schema data/schema.toml --out out --column x=y",
            "--column x: expected one of ",
        ),
        (
            None,
            "prepare --source parquet --path data --schema data/schema.toml --out out "
            "--column user_id=bogus",
            "--column user_id=bogus: expected one of user_id, item_id, ts, ",
        ),
        (
            schema_with('[[user]]\nname = "colour"\n'),
            "prepare --source parquet --path data --schema data/schema.toml --out out",
            "--schema: colour: expected columns of data/users.parquet, or --column colour= one of ",
        ),
        (
            schema_with('[[contxt]]\nname = "colour"\n'),
            "prepare --source parquet --path data --schema data/schema.toml --out out",
            "--schema data/schema.toml: contxt: expected one of ad, behaviour, context, ",
        ),
        (
            schema_with('[[context]]\nname = "colour"\nkind = "nmber"\n'),
            "prepare --source parquet --path data --schema data/schema.toml --out out",
            "colour.kind: expected category, tags or number, found 'nmber'",
        ),
        (
            None,
            "compare --data data --out out --models lr base",
            "--models: base follows nothing; several are given as --models din,base, or each with",
        ),
    ],
)
def test_what_goes_wrong_is_one_line(
    shop_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], None] | None,
    arguments: str,
    expected: str,
) -> None:
    """One line that says what was expected, however long; no traceback. The exit code is 2 where
    an option is named, 1 where the files are at fault."""
    shutil.copytree(shop_run, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    if spoil:
        spoil(tmp_path / "data")
    code = command(*arguments.split())
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert expected in lines[-1]
    assert code == (2 if lines[-1].startswith("error: --") else 1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        "prepare --source parquet --out out --path data",
        "prepare --source parquet --out out --path data --schema data/schema.toml --column user",
        "prepare --source parquet --out out --path data --schema data/schema.toml --memory 2",
        "prepare --source parquet --out out --path data --schema data/schema.toml --engine flink",
        "prepare --source parquet --out out --path data --schema data/schema.toml --master yarn",
        "prepare --source parquet --out out --path data --schema s.toml --unreadable perhaps",
        "prepare --source synthetic --out out --engine duckdb",
        "prepare --source movielens-1m --out out",
        "prepare --source films --out out",
        "prepare --source parquet --conversions --out out --path data --schema data/schema.toml",
        "fit --data data",
        "fit --data data --out out --seed -1",
        f"fit --data data --out out --seed {2**64}",
        "fit --data data --out out --threads 257",
        f"retrain --logs logs --repository repository --seed {2**64}",
        "compare --data data --out out --threads 257",
        "sleep",
    ],
)
def test_a_wrong_use_of_a_command_exits_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str
) -> None:
    """Nothing is written."""
    monkeypatch.chdir(tmp_path)
    assert command(*arguments.split()) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("synthetic --path x", "--path is for --source movielens-1m, movielens-20m, amazon-csv"),
        ("synthetic --test-users x", "--test-users is for --source movielens-1m"),
        ("taobao --path x --test-users x", "--test-users is for --source movielens-1m"),
        ("synthetic --schema s.toml", "--schema is for --source parquet"),
        ("movielens-20m --path x --schema s.toml", "--schema is for --source parquet"),
        ("synthetic --column a=b", "--column is for --source parquet"),
        ("movielens-20m --path x --column a=b", "--column is for --source parquet"),
        ("taobao --path x --engine duckdb", "--engine is for --source parquet"),
        ("synthetic --master yarn", "--master is for --source parquet"),
        ("alimama --path x --memory 4GB", "--memory is for --source parquet"),
        ("ali-ccp --path x --unreadable skip", "--unreadable is for --source parquet"),
        ("movielens-20m --path x --users 2000", "--users is for --source synthetic"),
        ("amazon-csv --path x --conversions", "--conversions is for --source synthetic"),
        ("parquet --path x --schema s.toml --users 4", "--users is for --source synthetic"),
        ("parquet --path x --schema s.toml --seed 0", "--seed is for --source movielens-1m, "),
        ("synthetic --max-bad-share 0", "--max-bad-share is for --source movielens-1m, "),
        ("movielens-1m --path x --partial", "--partial is for --source movielens-20m, amazon-rev"),
        (
            "parquet --path x --schema s.toml --column user_id=a --column user_id=b",
            "--column user_id: expected once",
        ),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    expected: str,
) -> None:
    """Also where its value is the default: exit code 2 before any work, and what it is for."""
    monkeypatch.chdir(tmp_path)
    assert command("prepare", "--out", "out", "--source", *arguments.split()) == 2
    assert expected in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--set foo=1", "--set foo: expected an option of din: "),
        ("--model dien2", "--model dien2: expected one of lr, "),
        ("--set task_weights=[1]", "expected a number for each task: click, buy"),
        ("--model transformer --set heads=3", "--set heads: "),
    ],
)
def test_a_setting_is_looked_at_before_the_logs(
    shop_logs: Logs, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, expected: str
) -> None:
    """Exit code 2, though the events can't be read either."""
    shop_logs.write(tmp_path)
    (tmp_path / "events.parquet").write_bytes(b"nothing of this kind")
    out = tmp_path / "run"
    assert command("fit", "--data", tmp_path, "--out", out, *words.split()) == 2
    assert expected in capsys.readouterr().err
    assert not out.exists()


def test_a_refusal_does_not_wait_for_torch(tmp_path: Path) -> None:
    """A command that needs no torch says what is wrong without it."""
    program = "import sys; from training.__main__ import main\n"
    program += "try: main()\nfinally: print('torch' in sys.modules)"
    source = ["prepare", "--source", "movielens-1m", "--path", str(tmp_path / "none.zip")]
    ended = subprocess.run(
        [sys.executable, "-c", program, *source, "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (1, "False\n")
    assert ended.stderr.startswith(f"error: {tmp_path}/none.zip: ")


def test_every_expected_error_is_there() -> None:
    """Under the name of the module that raises it."""
    for module, name in training.__main__._EXPECTED.items():
        assert issubclass(getattr(importlib.import_module(module), name), Exception)


def test_a_failing_process_shows_no_traceback(tmp_path: Path) -> None:
    """As seen from outside, in a narrow terminal: one line on stderr, nothing on stdout."""
    data = tmp_path / ("a-long-name" * 10)
    ended = subprocess.run(
        [sys.executable, "-m", "training", "fit", "--data", str(data), "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stdout == ""
    # On a slow machine it is also told that PyTorch is still being loaded.
    told = [line for line in ended.stderr.splitlines() if not line.startswith("load PyTorch: ")]
    assert len(told) == 1
    assert told[0].startswith(f"error: {data}/schema.toml: file: expected a readable file")


def test_without_its_packages_a_command_says_what_brings_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in an environment that has the service's only."""
    monkeypatch.delitem(sys.modules, "training.fit", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert command("fit", "--data", tmp_path, "--out", tmp_path / "run") == 1
    said = capsys.readouterr().err
    assert said == "error: torch is not installed: pip install 'dinserve[training]'\n"

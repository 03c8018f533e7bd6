"""The commands on the owners' formats: from the files to a model that was measured."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.training import test_logs
from tests.training.readers import files
from tests.training.test_job import ONE, command

SMALL = ("--set", "dim=2", "--set", "head=[4]", "--set", "attention=[4]", "--set", "size=256")
SOURCES = ("movielens-20m", "amazon-reviews", "alimama", "ali-ccp", "taobao")


def movielens_20m(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    lines = [
        f"{u},{film},{rng.integers(1, 11) / 2},{at}"
        for u in range(1, 61)
        for at, film in enumerate((1, 2))
    ]
    return files.movielens_20m(folder, lines)


def amazon_reviews(folder: Path) -> Path:
    reviews = [files.review(f"U{u}", f"B{(u + at) % 20}", at) for u in range(30) for at in range(5)]
    return files.amazon(folder, reviews, [files.described(f"B{n}", ["a"]) for n in range(20)])


def alimama(folder: Path) -> Path:
    shown = [
        f"{u},{files.ALIMAMA_FIRST + day * files.DAY},{1 + day % 2},430548_1007,{1 - c},{c}"
        for u in range(1, 61)
        for day in range(8)
        for c in [(u + day) % 2]
    ]
    behaviours = [f"{u},{files.ALIMAMA_FIRST - u},pv,6406,95471" for u in range(1, 61)]
    return files.alimama(folder, shown, behaviours)


def ali_ccp(folder: Path) -> Path:
    users = [
        files.common(str(u), ("101", str(u), "1.0"), ("109_14", "7", "2.0")) for u in range(60)
    ]
    labels = ((0, 0), (1, 0), (1, 1))
    samples = [
        files.sample(n, *labels[n % 3], str(n // 3), ("206", str(n % 5), "1.0")) for n in range(180)
    ]
    return files.ali_ccp(folder, (samples, users), (samples, users))


def taobao(folder: Path) -> Path:
    begin = 1_511_539_200
    lines = [f"{u},{u + at},{u % 3},pv,{begin + at}" for u in range(1, 121) for at in range(3)]
    return files.taobao(folder, *lines)


MAKE: dict[str, Callable[[Path], Path]] = {
    "movielens-20m": movielens_20m,
    "amazon-reviews": amazon_reviews,
    "alimama": alimama,
    "ali-ccp": ali_ccp,
    "taobao": taobao,
    "movielens-1m": lambda folder: test_logs.movielens(folder, test_logs.ratings_of(3)),
    "amazon-csv": test_logs.amazon,
}


@pytest.mark.parametrize("source", SOURCES)
def test_official_files_become_a_measured_model(source: str, tmp_path: Path) -> None:
    """prepare, fit with the data set's recipe, evaluate: with each task's log loss at the end."""
    path = MAKE[source](tmp_path)
    known = () if source == "amazon-reviews" else ("--partial",)
    data, run = tmp_path / "data", tmp_path / "run"
    assert command("prepare", "--source", source, "--path", path, "--out", data, *known) == 0
    assert command("fit", "--data", data, "--out", run, *ONE, *SMALL) == 0
    assert command("evaluate", "--run", run) == 0
    found = json.loads((run / "run.json").read_text())["metrics"]["test"]
    losses = [value for name, value in found.items() if name.endswith("log_loss")]
    assert len(losses) == (2 if source == "ali-ccp" else 1)
    assert np.isfinite(losses).all()


def test_prepare_says_what_was_left_out_and_what_is_lacking(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside the malformed rows: counts by reason, and what a fit would refuse."""
    path = taobao(tmp_path)
    with path.open("a") as file:
        file.write("999,1,1,pv,5\n1000,1,1,pv,1511539200\n")
    arguments = ("--source", "taobao", "--path", path, "--out", tmp_path / "data", "--partial")
    assert command("prepare", *arguments) == 0
    printed = capsys.readouterr().err
    assert "left out: events outside 2017-11-25 to 2017-12-03: 1" in printed
    assert "note: users with one event only, and no history before it: 1" in printed


def test_a_part_of_a_data_set_has_to_be_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line and exit code 1, and nothing is written."""
    path, out = taobao(tmp_path), tmp_path / "data"
    assert command("prepare", "--source", "taobao", "--path", path, "--out", out) == 1
    assert "rows: expected the published 100,150,807, found 360 (--partial" in (
        capsys.readouterr().err
    )
    assert not out.exists()


def replaced(folder: Path, file: str, data: bytes) -> None:
    """Put another text into a file, or into the member of a zip; an empty .gz has no header."""
    zipped, _, member = file.partition("/")
    if not member:
        (folder / file).write_bytes(gzip.compress(data) if data and file.endswith(".gz") else data)
        return
    with zipfile.ZipFile(folder / zipped) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(folder / zipped, "w") as archive:
        for name, content in {**members, member: data}.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    ("source", "file", "data"),
    [
        ("movielens-1m", "ml-1m.zip/ml-1m/ratings.dat", b""),
        ("movielens-1m", "ml-1m.zip/ml-1m/movies.dat", b"\n"),
        ("movielens-1m", "ml-1m.zip/ml-1m/users.dat", b""),
        ("movielens-20m", "ml-20m.zip/ml-20m/ratings.csv", b"userId,movieId,rating,timestamp\n"),
        ("movielens-20m", "ml-20m.zip/ml-20m/movies.csv", b"movieId,title,genres\n"),
        ("amazon-csv", "tiny.events.csv.gz", b"user_id,item_id,step\n"),
        ("amazon-csv", "tiny.items.csv.gz", b"item_id,category_id\n"),
        ("amazon-csv", "tiny.test.csv.gz", b"user_id,positive_item_id,negative_item_id\n"),
        ("amazon-reviews", "reviews_Toys_5.json.gz", b"\n"),
        ("amazon-reviews", "reviews_Toys_5.json.gz", b""),
        ("amazon-reviews", "meta_Toys.json.gz", b""),
        ("alimama", "raw_sample.csv", b"user,time_stamp,adgroup_id,pid,nonclk,clk\n"),
        ("alimama", "behavior_log.csv", b"user,time_stamp,btag,cate,brand\n"),
        *(
            ("ali-ccp", f"{name}_{split}.csv", b"")
            for name in ("sample_skeleton", "common_features")
            for split in ("train", "test")
        ),
        ("taobao", "UserBehavior.csv", b""),
    ],
)
def test_a_file_without_rows_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, file: str, data: bytes
) -> None:
    """The line names the file and what was expected; exit code 1, and nothing is written."""
    path, out = MAKE[source](tmp_path), tmp_path / "out"
    known = ("--partial",) if source in SOURCES else ()
    replaced(tmp_path, file, data)
    assert command("prepare", "--source", source, "--path", path, "--out", out, *known) == 1
    printed = capsys.readouterr().err
    assert f"error: {tmp_path / file}: rows: expected at least one row, found none" in printed
    assert not out.exists()


def test_partial_is_for_data_sets_of_known_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong option is told before any work, with exit code 2."""
    assert command("prepare", "--source", "synthetic", "--out", tmp_path / "x", "--partial") == 2
    assert "--partial" in capsys.readouterr().err
    assert command("prepare", "--source", "taobao", "--out", tmp_path / "x") == 2
    assert "--path is needed for taobao" in capsys.readouterr().err

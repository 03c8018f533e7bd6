"""The bundle: what was written is what is opened, and whatever was changed is refused."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.contract import bundle
from model.contract.batch import Batch
from model.contract.bundle import MANIFEST, Bundle, BundleError, Golden
from model.contract.encode import Encoder, Request

Fill = Callable[[Path], None]


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_round_trip(written: Path, encoder: Encoder) -> None:
    """An opened bundle has the schema, tables, items, golden vectors and facts it was given."""
    opened = Bundle.open(written)
    assert opened.schema == encoder.schema
    assert opened.graph.read_bytes() == b"a graph"
    assert opened.metrics == {"gauc": 0.75}
    assert opened.manifest["lineage"] == {"seed": 1}
    assert opened.manifest["name"] == "shop"
    assert {name: table.size for name, table in opened.encoder.tables.items()} == {
        name: table.size for name, table in encoder.tables.items()
    }
    request = Request(["é", "new"], encoder.records([{"item_id": "i2", "ts": 1}]), {"age": 40})
    one, two = (each.encode(request)[0] for each in (opened.encoder, encoder))
    for each in fields(Batch):
        assert np.array_equal(getattr(one, each.name), getattr(two, each.name))
    opened.check_encoding()
    assert opened.check_scores(lambda _: opened.golden.logits, 0.0) == 0.0


def test_a_model_of_item_ids_alone_can_be_bundled(tmp_path: Path) -> None:
    """The smallest schema, with nothing learnt and no items, makes a bundle."""
    from model.contract.catalogue import Catalogue
    from model.contract.ids import Vocabulary
    from model.contract.schema import Schema

    text = 'name = "bare"\n[[item]]\nname = "item_id"\n'
    schema = Schema.parse(text)
    nothing = Catalogue.build([], np.zeros((0, 1), np.int64))
    encoder = Encoder(schema, {"item_id": Vocabulary(np.zeros(0, np.uint64))}, nothing)
    golden = [{"candidates": ["a"]}]
    batch = bundle.encode_golden(encoder, golden)
    bundle.write(
        tmp_path,
        schema_text=text,
        encoder=encoder,
        graph=b"",
        golden=Golden(golden, batch, np.zeros((1, 1), np.float32)),
        metrics={3: (1, 2), 20: None},
        lineage={},
    )
    opened = Bundle.open(tmp_path)
    opened.check_encoding()
    assert opened.metrics == {"3": [1, 2], "20": None}


def test_nothing_is_pickled(written: Path) -> None:
    """Every file is JSON, TOML, ONNX or an array of plain numbers."""
    kinds = {path.suffix for path in files_of(written)}
    assert kinds == {".json", ".toml", ".onnx", ".npy", ".npz"}
    for path in files_of(written):
        if path.suffix in {".npy", ".npz"}:
            np.load(path, allow_pickle=False)


@pytest.mark.parametrize("kind", ["flip", "truncate", "extend", "remove", "empty"])
def test_a_changed_file_is_refused(written: Path, kind: str) -> None:
    """Any file with a bit flipped, cut short, made longer, emptied or removed is refused."""
    random_ = random.Random(kind)
    for path in files_of(written):
        whole = path.read_bytes()
        for _ in range(12 if kind == "flip" else 2):
            changed = bytearray(whole)
            at = random_.randrange(len(whole))
            match kind:
                case "flip":
                    changed[at] ^= 1 << random_.randrange(8)
                case "truncate":
                    changed = changed[:at]
                case "extend":
                    changed += b"x"
                case "empty":
                    changed.clear()
            path.unlink(missing_ok=True)
            if kind != "remove":
                path.write_bytes(changed)
            with pytest.raises(BundleError):
                Bundle.open(written)
        path.write_bytes(whole)
    Bundle.open(written)


@pytest.mark.parametrize("value", [0, None, "x", [], {}, True, 1.5])
def test_an_edited_manifest_is_refused(written: Path, value: Any) -> None:
    """No entry of the manifest can be changed, added or dropped by hand."""
    path = written / MANIFEST
    whole = json.loads(path.read_bytes())
    edits = [{**whole, key: value} for key in [*whole, "more"]]
    edits += [{key: each for key, each in whole.items() if key != gone} for gone in whole]
    edits.append(value)
    for edited in edits:
        path.write_text(json.dumps(edited))
        with pytest.raises(BundleError):
            Bundle.open(written)


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    """A missing or empty folder is refused like a broken bundle."""
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(BundleError, match=MANIFEST):
            Bundle.open(folder)


def remove(name: str) -> Fill:
    return lambda folder: (folder / name).unlink()


def overwrite(name: str, content: bytes) -> Fill:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return change


def narrow_catalogue(folder: Path) -> None:
    path = folder / "catalogue" / "rows.npy"
    rows = np.array(np.load(path))
    np.save(path, rows[:, :-1])


def change_schema(folder: Path) -> None:
    path = folder / "schema.toml"
    path.write_text(path.read_text().replace("history_length = 4", "history_length = 5"))


@pytest.mark.parametrize(
    ("change", "words", "reason"),
    [
        *((remove(name), f"{name} is not listed", "manifest") for name in bundle.REQUIRED),
        (remove("tables/genre.npy"), "table genre has no vocabulary", "contents"),
        (change_schema, "fingerprint differs", "schema"),
        (overwrite("schema.toml", b"name = 1"), "item: expected", "schema"),
        (overwrite("schema.toml", b"\xff"), "UTF-8", "schema"),
        (narrow_catalogue, "a column for each item field", "schema"),
        (overwrite("catalogue/keys.npy", b""), "EOF", "contents"),
        (overwrite("tables/genre.npy", b"no array"), "allow_pickle", "contents"),
        (overwrite("golden.json", b"["), "JSON", "contents"),
        (overwrite("golden.json", b"[" * 100_000), "Recursion", "contents"),
        (overwrite("golden.npz", b"PK no zip"), "allow_pickle", "contents"),
        (overwrite("golden.npz", b"PK\3\4 no zip"), "zip", "contents"),
    ],
)
def test_contents_that_make_no_model_are_refused(
    written: Path, seal: Fill, change: Fill, words: str, reason: str
) -> None:
    """Files whose digests agree but whose contents do not are refused all the same, by reason."""
    change(written)
    seal(written)
    with pytest.raises(BundleError, match=words) as refused:
        Bundle.open(written)
    assert refused.value.reason == reason


def test_a_changed_file_is_refused_for_its_digest_and_a_manifest_for_its_own(written: Path) -> None:
    """The reason says which of the two it was; a missing file is one that differs."""
    for name, reason in (("model.onnx", "digest"), (MANIFEST, "manifest")):
        whole = (written / name).read_bytes()
        (written / name).write_bytes(whole[:-3])
        with pytest.raises(BundleError) as refused:
            Bundle.open(written)
        assert refused.value.reason == reason
        (written / name).write_bytes(whole)
    (written / "golden.npz").unlink()
    with pytest.raises(BundleError) as refused:
        Bundle.open(written)
    assert refused.value.reason == "digest"


def test_a_bundle_above_the_limit_is_refused_before_its_files_are_read(written: Path) -> None:
    """The limit is to the byte, of all files but the manifest; what they hold does not matter."""
    files = [path for path in files_of(written) if path.name != MANIFEST]
    size = sum(path.stat().st_size for path in files)
    Bundle.open(written, max_bytes=size)
    for path in files:
        path.unlink()
    with pytest.raises(BundleError, match=f"{size} bytes, more than {size - 1}") as refused:
        Bundle.open(written, max_bytes=size - 1)
    assert refused.value.reason == "too_large"


def test_a_file_grown_far_beyond_its_entry_is_not_read(written: Path) -> None:
    """A sparse file of a terabyte is refused at once."""
    with (written / "model.onnx").open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(BundleError, match=r"model\.onnx: digest or size differs"):
        Bundle.open(written)
    with (written / MANIFEST).open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(BundleError, match="more than") as refused:
        Bundle.open(written)
    assert refused.value.reason == "too_large"


def test_a_file_the_manifest_does_not_list_is_never_read(written: Path, seal: Fill) -> None:
    """A vocabulary put beside the listed files has no digest, so it does not count."""
    extra = (written / "tables" / "genre.npy").read_bytes()
    (written / "tables" / "genre.npy").unlink()
    seal(written)
    (written / "tables" / "genre.npy").write_bytes(extra)
    with pytest.raises(BundleError, match="table genre has no vocabulary"):
        Bundle.open(written)


def test_a_file_outside_the_bundle_is_refused(written: Path, seal: Fill) -> None:
    """A manifest cannot point out of its folder."""
    path = written / MANIFEST
    for name in ("../secret", "/etc/hostname", "a\0b"):
        manifest = json.loads(path.read_bytes())
        body = {key: each for key, each in manifest.items() if key != "sha256"}
        body["files"][name] = {"sha256": "0", "bytes": 0}
        path.write_bytes(bundle.sealed(body))
        with pytest.raises(BundleError):
            Bundle.open(written)


def test_a_newer_format_is_refused(written: Path) -> None:
    """A bundle of a later format says so instead of being misread."""
    path = written / MANIFEST
    body = {key: each for key, each in json.loads(path.read_bytes()).items() if key != "sha256"}
    body["format"] = bundle.FORMAT + 1
    path.write_bytes(bundle.sealed(body))
    with pytest.raises(BundleError, match="format 2, this code reads 1"):
        Bundle.open(written)


class Mine:
    """Unpickling one of these would be seen."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize("name", ["tables/genre.npy", "catalogue/names.npy"])
def test_a_pickled_array_is_refused(written: Path, seal: Fill, name: str) -> None:
    """An array file that holds a pickle is refused and the pickle is not run."""
    np.save(written / name, np.array([Mine()], object), allow_pickle=True)
    seal(written)
    with pytest.raises(BundleError, match="Python objects"):
        Bundle.open(written)


def test_a_pickled_golden_array_is_refused(written: Path, seal: Fill) -> None:
    """The golden arrays are read without pickle as well."""
    with np.load(written / "golden.npz") as stored:
        arrays = dict(stored)
    np.savez(written / "golden.npz", **{**arrays, "item": np.array([Mine()], object)})
    seal(written)
    with pytest.raises(BundleError, match="allow_pickle"):
        Bundle.open(written)


def test_golden_arrays_without_times_are_those_of_the_requests(written: Path, seal: Fill) -> None:
    """A bundle that was written when a batch held no times is served as before."""
    times = Bundle.open(written).golden.batch.ts
    assert times.any()
    with np.load(written / "golden.npz") as stored:
        arrays = dict(stored)
    del arrays["ts"]
    np.savez(written / "golden.npz", **arrays)
    seal(written)
    opened = Bundle.open(written)
    assert np.array_equal(opened.golden.batch.ts, times)
    opened.check_encoding()


@pytest.mark.parametrize("name", [each.name for each in fields(Batch)])
def test_an_array_encoded_differently_is_refused(written: Path, seal: Fill, name: str) -> None:
    """When the code encodes a golden request to other arrays, the bundle is not served."""
    with np.load(written / "golden.npz") as stored:
        arrays = dict(stored)
    changed = arrays[name].copy()
    changed.reshape(-1)[-1] += 1
    for drift in (changed, arrays[name][..., :-1]):
        np.savez(written / "golden.npz", **{**arrays, name: drift})
        seal(written)
        with pytest.raises(BundleError, match=f"{name} is encoded differently"):
            Bundle.open(written).check_encoding()


@pytest.mark.parametrize(
    "requests",
    [
        [],
        [{}],
        [1],
        {},
        [{"candidates": [""]}],
        [{"candidates": [None]}],
        [{"candidates": ["a"], "given": [{}, {}]}],
        [{"candidates": ["a"], "given": [1]}],
        [{"candidates": ["a"], "user": 1}],
        [{"candidates": ["a"], "user": {"age": "x"}}],
        [{"candidates": ["a"], "history": [1]}],
    ],
)
def test_golden_requests_that_cannot_be_encoded_are_refused(
    written: Path, seal: Fill, requests: Any
) -> None:
    """A golden request this code does not understand is a `BundleError`, nothing else."""
    (written / "golden.json").write_text(json.dumps(requests))
    seal(written)
    with pytest.raises(BundleError, match=r"golden\.json"):
        Bundle.open(written).check_encoding()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(written: Path, bad: float) -> None:
    """One NaN or infinite logit condemns the bundle, found or expected."""
    opened = Bundle.open(written)
    logits = opened.golden.logits.copy()
    logits[1, 1] = bad
    with pytest.raises(BundleError, match="not finite"):
        opened.check_scores(lambda _: logits, 1e9)
    expecting = replace(opened, golden=replace(opened.golden, logits=logits))
    with pytest.raises(BundleError, match="not finite"):
        expecting.check_scores(lambda _: opened.golden.logits, 1e9)


def test_scores_of_another_shape_are_refused(written: Path) -> None:
    """Scores that numpy would stretch to the expected shape are refused too."""
    opened = Bundle.open(written)
    logits = opened.golden.logits
    for found in (logits[:-1], logits[:1], logits[:, :1], logits[:, 0], logits[None], logits.T):
        with pytest.raises(BundleError, match="another shape"):
            opened.check_scores(lambda _, found=found: found, 1e9)


def test_a_golden_set_without_scores_proves_nothing(written: Path) -> None:
    """No golden logits is a reason to refuse, not to pass."""
    opened = Bundle.open(written)
    none = np.zeros((0, 2), np.float32)
    empty = replace(opened, golden=replace(opened.golden, logits=none))
    with pytest.raises(BundleError, match="no logits"):
        empty.check_scores(lambda _: none, 1.0)


def test_scores_off_by_more_than_the_tolerance_are_refused(written: Path) -> None:
    """The largest difference decides, and is told."""
    opened = Bundle.open(written)
    found = opened.golden.logits.copy()
    found[2, 0] -= 0.25
    assert opened.check_scores(lambda _: found, 0.25) == 0.25
    with pytest.raises(BundleError, match=r"off by 2\.50e-01, more than 1e-05"):
        opened.check_scores(lambda _: found, 1e-5)


def test_the_scorer_gets_the_golden_batch(written: Path) -> None:
    """What is scored is the stored batch, every array of it."""
    opened = Bundle.open(written)
    seen: list[Batch] = []
    opened.check_scores(lambda batch: seen.append(batch) or opened.golden.logits, 0.0)
    assert seen == [opened.golden.batch]


def test_another_process_encodes_alike(written: Path) -> None:
    """A fresh process with another hash seed opens the bundle and gives the golden arrays."""
    script = (
        "import sys; from pathlib import Path; from model.contract.bundle import Bundle;"
        "Bundle.open(Path(sys.argv[1])).check_encoding(); print('same')"
    )
    root = Path(bundle.__file__).parents[2]
    for seed in ("1", "77"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)}
        command = [sys.executable, "-c", script, str(written)]
        out = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        assert out.stdout == "same\n"


def test_a_moved_bundle_still_opens(written: Path, tmp_path: Path) -> None:
    """A bundle holds no path of its own."""
    moved = shutil.move(written, tmp_path / "elsewhere")
    Bundle.open(Path(moved)).check_encoding()


def test_write_forces_every_file_to_disk_and_the_manifest_last(
    fill: Fill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the manifest reaches the disk, everything it names is there already."""
    synced: list[str] = []
    real = bundle.sync
    monkeypatch.setattr(
        bundle,
        "sync",
        lambda path: synced.append(path.relative_to(tmp_path).as_posix()) or real(path),
    )
    fill(tmp_path)
    names = [path.relative_to(tmp_path).as_posix() for path in files_of(tmp_path)]
    assert set(names) | {"tables", "catalogue", "."} == set(synced)
    assert synced[-2:] == [MANIFEST, "."]

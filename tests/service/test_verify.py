"""Verification: what is not the version that was published, or does not work here, is refused."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.contract.bundle import MANIFEST, BundleError, sealed
from model.contract.repository import Repository
from model.contract.schema import Schema
from service import sweep
from service.encoding import encode
from service.engine import EngineError, OnnxEngine
from service.features import Stored
from service.recorded import EVERY, KEPT, MAX_BYTES, Recorded
from service.verify import Version, verify
from service.wire import Ask
from tests.support import TOY, publish_toy, spoilt_for, toy_encoder

DAMAGES = 1000


def cpu(graph: Path) -> OnnxEngine:
    return OnnxEngine.open(graph, "cpu")


def verified(root: Path, number: int = 1, **options: Any) -> Version:
    return verify(Repository(root, "toy"), number, cpu, **options)


def reason(root: Path, number: int = 1, **options: Any) -> str:
    with pytest.raises((BundleError, EngineError)) as refused:
        verified(root, number, **options)
    assert isinstance(refused.value, (BundleError, EngineError))
    return refused.value.reason


def reseal(folder: Path) -> None:
    """Have the manifest agree with the files, as a faulty publisher's would."""
    manifest = json.loads((folder / MANIFEST).read_bytes())
    del manifest["sha256"]
    for name, entry in manifest["files"].items():
        data = (folder / name).read_bytes()
        entry |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (folder / MANIFEST).write_bytes(sealed(manifest))


def test_none_of_a_thousand_damaged_versions_is_ever_served(tmp_path: Path) -> None:
    """Bytes flipped and ends cut off, at random in all files: each version is refused."""
    publish_toy(tmp_path)
    folder = tmp_path / "toy" / "1"
    random_ = random.Random(11)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder) for path in paths]
    whole = {name: path.read_bytes() for name, path in zip(names, paths, strict=True)}
    reasons: list[str] = []
    for at in range(DAMAGES):
        name = names[at % len(names)]
        data = bytearray(whole[name])
        if random_.random() < 0.5:
            data[random_.randrange(len(data))] ^= random_.randrange(1, 256)
        else:
            del data[random_.randrange(len(data)) :]
        (folder / name).write_bytes(data)
        reasons.append(reason(tmp_path))
        (folder / name).write_bytes(whole[name])
    assert len(reasons) == DAMAGES
    assert {*reasons} == {"manifest", "digest"}
    assert verified(tmp_path).number == 1


def test_a_version_is_refused_by_the_schema_it_does_not_fit(tmp_path: Path) -> None:
    """A schema that is not the manifest's, and a graph whose inputs are not the schema's."""
    publish_toy(tmp_path)
    folder = tmp_path / "toy" / "1"
    text = (folder / "schema.toml").read_text()
    (folder / "schema.toml").write_text(text.replace("history_length = 5", "history_length = 6"))
    reseal(folder)
    assert reason(tmp_path) == "schema"
    publish_toy(tmp_path)
    other = TOY.replace('[[context]]\nname = "hour"\n', "")
    publish_toy(tmp_path / "other", schema_text=other)
    folder = tmp_path / "other" / "toy" / "1"
    shutil.copy(tmp_path / "toy" / "2" / "model.onnx", folder / "model.onnx")  # wants a context
    reseal(folder)
    assert reason(tmp_path / "other") == "schema"


def test_a_version_is_refused_by_what_fails(tmp_path: Path) -> None:
    """Each of what else can be wrong has a reason of its own."""
    publish_toy(tmp_path)
    publish_toy(tmp_path, bias=1.0)
    first, second = (tmp_path / "toy" / name for name in ("1", "2"))
    assert reason(tmp_path, max_bytes=1000) == "too_large"
    shutil.copy(second / "model.onnx", first / "model.onnx")
    reseal(first)
    assert reason(tmp_path) == "golden_scores"
    (first / "model.onnx").write_bytes(b"no graph")
    reseal(first)
    assert reason(tmp_path) == "engine"
    (second / "golden.json").write_text('[{"candidates": ["i7"]}, {"candidates": ["i1"]}]')
    reseal(second)
    assert reason(tmp_path, 2) == "golden_encoding"


def recorded(*items: str, history: tuple[str, ...] = ()) -> Recorded:
    """One recorded request."""
    codec = toy_encoder(Schema.parse(TOY)).codec
    found = Recorded()
    behaviours = [{"item_id": item, "ts": at} for at, item in enumerate(history)]
    found.note(
        Ask(user="someone", candidates=items, history=behaviours), Stored(codec.empty()), codec, 99
    )
    return found


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_row_that_is_no_number_refuses_a_version(tmp_path: Path, value: float) -> None:
    """Though neither golden nor recorded requests meet it."""
    for item in ("i40", "i44", "i49"):
        publish_toy(tmp_path / item, change_graph=spoilt_for(item, value))
        assert reason(tmp_path / item) == "not_finite"


def test_a_sweep_meets_every_row_in_every_column(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of larger tables rows from the first to the last."""
    encoder = toy_encoder(Schema.parse(TOY))
    schema, sizes = encoder.schema, {name: each.size for name, each in encoder.tables.items()}
    monkeypatch.setattr(sweep, "USERS", 8)

    def met() -> dict[tuple[str, str], set[int]]:
        found: dict[tuple[str, str], set[int]] = {}
        for batch in sweep.of_every_row(encoder):
            shift = schema.width("item")
            arrays = {
                group: (getattr(batch, group), 0) for group in ("user", "item", "ad", "context")
            }
            arrays |= {"behaviour": (batch.history, shift), "of behaviours": (batch.history, 0)}
            for name, (array, first) in arrays.items():
                group = "item" if name == "of behaviours" else name
                for field in schema.group(group):
                    columns = schema.columns(group)[field.name]
                    ids = array[..., columns.start + first : columns.stop + first]
                    found.setdefault((name, field.table), set()).update(ids.flatten().tolist())
        return found

    whole = met()
    assert len(whole) > 4
    assert all(rows == {*range(sizes[table])} for (_, table), rows in whole.items())
    monkeypatch.setattr(sweep, "MOST", 16)
    some = met()["item", "item_id"]
    assert len(some) == 16
    assert max(some) > sizes["item_id"] - 16


def test_nan_on_a_golden_request_or_on_a_recorded_one_refuses_a_version(tmp_path: Path) -> None:
    """An item as large as this one has scores until it meets itself: what neither the sweep nor
    golden requests do, real ones may."""
    publish_toy(tmp_path, change_graph=spoilt_for("i40", 1e10))
    assert verified(tmp_path).number == 1
    samples = recorded("i3", "i40", history=("i40",)).samples()
    assert reason(tmp_path, recorded=samples) == "not_finite"
    assert verified(tmp_path, recorded=recorded("i3").samples()).number == 1
    publish_toy(tmp_path / "nan", change_graph=spoilt_for("i44", float("nan")))
    tmp_path = tmp_path / "nan"
    golden = tmp_path / "toy" / "1" / "golden.json"
    requests = golden.read_text().replace("unheard-of", "i44")
    golden.write_text(requests)
    with np.load(golden.with_suffix(".npz")) as stored:
        changed = dict(stored)
    encoder = toy_encoder(Schema.parse(TOY))
    items = [
        encoder.candidates(raw["candidates"])[0][:, 0] for raw in json.loads(golden.read_bytes())
    ]
    changed["item"][:, 0] = np.concatenate(items)
    changed["item"][-1, 1] = encoder.candidates(["i44"])[0][0, 1]
    np.savez(golden.with_suffix(".npz"), **changed)
    reseal(golden.parent)
    assert reason(tmp_path) == "not_finite"


def test_a_recorded_request_that_a_version_can_not_read_is_passed_over(tmp_path: Path) -> None:
    """Another schema may take other values: that is no fault of the version."""
    text = TOY.replace('name = "hour"\n', 'name = "hour"\nkind = "number"\nboundaries = [12]\n')
    publish_toy(tmp_path, schema_text=text)
    codec = toy_encoder(Schema.parse(TOY)).codec
    samples = Recorded()
    samples.note(
        Ask(user="u", candidates=["i1"], context={"hour": "noon"}), Stored(codec.empty()), codec, 1
    )
    assert verified(tmp_path, recorded=samples.samples()).number == 1


def test_recorded_requests_are_few_small_and_nameless() -> None:
    """Every 16th, the last 32 of them, none with a large body, and no user's id."""
    codec = toy_encoder(Schema.parse(TOY)).codec
    samples = Recorded()
    for at in range(EVERY * (KEPT + 3)):
        ask = Ask(user="s3cr3t", candidates=[f"i{at}"])
        samples.note(ask, Stored(codec.empty()), codec, MAX_BYTES + 1)
        samples.note(ask, Stored(codec.empty()), codec, MAX_BYTES)
    kept = [sample.asked for sample in samples.samples()]
    assert [ask.candidates for ask in kept] == [[f"i{EVERY * n}"] for n in range(3, KEPT + 3)]
    assert {ask.user for ask in kept} == {""}


def test_a_recorded_history_is_read_in_the_layout_of_a_new_version() -> None:
    """What both layouts have is kept."""
    old = toy_encoder(Schema.parse(TOY))
    new = toy_encoder(Schema.parse(TOY.replace('name = "rating"', 'name = "dwell"')))
    stored = Stored(old.records([{"item_id": "i3", "ts": 1, "rating": "5"}]))
    converted = new.codec.convert(stored.history, old.codec)
    batch = encode(Ask(user="", candidates=["i1"]), Stored(converted), new).batch
    expected = new.behaviours(new.records([{"item_id": "i3", "ts": 1}]))
    assert batch.history[0].tolist() == expected.tolist()

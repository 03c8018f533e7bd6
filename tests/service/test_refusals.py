"""Bad versions published beside a running service: it goes on, ready, with the one it has."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from model.contract.repository import Repository
from tests.service.test_verify import reseal
from tests.support import Service, publish_toy, spoilt_for

MAX_BYTES = 100_000


def with_text(graph: bytes) -> bytes:
    """A graph that says a lot and does the same."""
    import onnx

    model = onnx.load_from_string(graph)
    model.doc_string = "x" * MAX_BYTES
    return bytes(model.SerializeToString())


def flipped(folder: Path) -> None:
    path = folder / "catalogue" / "rows.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def truncated(folder: Path) -> None:
    path = folder / "model.onnx"
    path.write_bytes(path.read_bytes()[:-100])


def cut_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:-100])


def of_another_schema(folder: Path) -> None:
    path = folder / "schema.toml"
    path.write_text(path.read_text().replace("history_length = 5", "history_length = 6"))
    reseal(folder)


def with_another_graph(folder: Path) -> None:
    other = folder.parent.parent / "other"
    publish_toy(other, bias=1.0)
    shutil.copy(other / "toy" / "1" / "model.onnx", folder / "model.onnx")
    reseal(folder)


def test_a_bad_version_is_refused_by_its_reason_and_the_old_one_serves(tmp_path: Path) -> None:
    """Corrupt, cut, of a wrong schema, wrong, producing NaN or too large: each is counted by its
    reason, readiness says the same as before throughout, and a good version is taken at last."""
    root = tmp_path / "root"
    publish_toy(root)
    environment = {
        "DINSERVE_POLL_SECONDS": "0.02",
        "DINSERVE_MAX_BUNDLE_BYTES": str(MAX_BYTES),
    }
    log = tmp_path / "log"
    with Service(root, "redis://127.0.0.1:1/0", log=log, environment=environment) as service:
        ready = service.client.get("/readyz").json()
        asked = {"user_id": "u", "candidates": ["i1", "i44"], "history": []}  # is recorded
        scores = service.score(**asked).json()["scores"]

        def refused(reason: str) -> float:
            lines = service.client.get("/metrics").text.splitlines()
            name = f'dinserve_model_versions_refused_total{{model="toy",reason="{reason}"}} '
            return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))

        def publish_bad(at: int, spoil: Callable[[Path], None], **options: object) -> None:
            made = tmp_path / f"made-{at}"
            publish_toy(made, **options)  # type: ignore[arg-type]
            spoil(made / "toy" / "1")
            (made / "toy" / "1").rename(root / "toy" / str(at))

        bad: list[tuple[str, Callable[[Path], None], dict[str, object]]] = [
            ("digest", flipped, {}),
            ("digest", truncated, {}),
            ("manifest", cut_manifest, {}),
            ("schema", of_another_schema, {}),
            ("golden_scores", with_another_graph, {}),
            ("not_finite", lambda _: None, {"change_graph": spoilt_for("i44", float("nan"))}),
            ("too_large", lambda _: None, {"change_graph": with_text}),
        ]
        for at, (reason, spoil, options) in enumerate(bad, 2):
            before = refused(reason)
            publish_bad(at, spoil, **options)
            deadline = time.monotonic() + 120
            while refused(reason) == before:
                assert time.monotonic() < deadline, (reason, service.logs())
                assert service.client.get("/readyz").json() == ready
                time.sleep(0.01)
            assert refused(reason) == before + 1
            assert service.score(**asked).json()["scores"] == scores
        assert service.client.get("/readyz").json() == ready
        number = publish_toy(root, bias=1.0)
        assert number == 2 + len(bad)
        deadline = time.monotonic() + 120
        while service.client.get("/readyz").json()["version"] != number:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert service.metric("dinserve_model_versions_refused_total") == len(bad)
    lines = [json.loads(line)["message"] for line in log.read_text().splitlines()]
    assert len([line for line in lines if " refused: " in line]) == len(bad)
    assert len(Repository(root, "toy").versions()) == 2 + len(bad)

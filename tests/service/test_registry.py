"""The registry: a version is served when it proves itself here, and replaced without a gap."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.contract.batch import Batch
from model.contract.repository import Repository
from service.engine import Engine, EngineError, OnnxEngine, Scores
from service.lineup import Lineup
from service.registry import Registry
from service.telemetry import Telemetry
from tests.support import TOY, publish_toy


def open_engine(graph: Path) -> Engine:
    return OnnxEngine.open(graph, "cpu")


def registry_of(
    root: Path, name: str | None = None, opening: Callable[[Path], Engine] = open_engine
) -> Registry:
    return Registry(root, name, open_engine=opening, telemetry=Telemetry())


def serve(registry: Registry) -> int | None:
    """Let the registry look once; the number of the version it serves then."""
    found = registry.look()
    if found is not None:
        registry.take(found)
    return None if registry.current is None else registry.current.number


def flip(path: Path) -> None:
    """Change one byte in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


class Shifted:
    """An engine that is wrong by a little."""

    provider = "cpu"

    def __init__(self, graph: Path, by: float) -> None:
        self._inner, self._by = open_engine(graph), by

    def run(self, batch: Batch, weight: bool = False) -> Scores:
        scores = self._inner.run(batch, weight)
        return Scores((scores.logit + self._by).astype(np.float32), scores.weight)


FILES = [
    "manifest.json",
    "schema.toml",
    "model.onnx",
    "golden.json",
    "golden.npz",
    "tables/item_id.npy",
    "tables/genre.npy",
    "catalogue/keys.npy",
    "catalogue/rows.npy",
    "catalogue/ends.npy",
    "catalogue/names.npy",
]


@pytest.mark.parametrize("file", FILES)
def test_a_version_with_a_changed_file_is_not_served(
    file: str, repository: Path, tmp_path: Path
) -> None:
    """One flipped byte in any file of a version is enough."""
    shutil.copytree(repository, tmp_path / "root")
    flip(tmp_path / "root" / "toy" / "1" / file)
    registry = registry_of(tmp_path / "root")
    assert serve(registry) is None
    assert "version 1 refused" in registry.trouble


def test_a_newer_version_takes_over(tmp_path: Path) -> None:
    """The newest valid version is served, and a version is opened just once."""
    opened: list[str] = []

    def opening(graph: Path) -> Engine:
        opened.append(graph.parent.name)
        return open_engine(graph)

    publish_toy(tmp_path)
    registry = registry_of(tmp_path, opening=opening)
    assert serve(registry) == 1
    first = registry.current
    assert serve(registry) == 1
    assert registry.current is first
    publish_toy(tmp_path, bias=1.0)
    assert serve(registry) == 2
    assert opened == ["1", "2"]


def test_a_bad_newer_version_leaves_the_old_one(tmp_path: Path) -> None:
    """A bad version is refused once; it is looked at again when its manifest changes."""
    publish_toy(tmp_path)
    registry = registry_of(tmp_path)
    assert serve(registry) == 1
    publish_toy(tmp_path, bias=1.0)
    graph = tmp_path / "toy" / "2" / "model.onnx"
    whole = graph.read_bytes()
    flip(graph)
    refused = registry.refused
    assert serve(registry) == 1
    assert serve(registry) == 1
    assert registry.refused == refused + 1
    graph.write_bytes(whole)
    assert serve(registry) == 1
    os.utime(graph.parent / "manifest.json", (0, 0))
    assert serve(registry) == 2


def test_at_start_an_older_version_stands_in_for_a_bad_one(tmp_path: Path) -> None:
    """With a bad newest version the service still starts, on the one before."""
    publish_toy(tmp_path)
    publish_toy(tmp_path)
    flip(tmp_path / "toy" / "2" / "golden.npz")
    assert serve(registry_of(tmp_path)) == 1


def test_removing_the_newest_version_rolls_back(tmp_path: Path) -> None:
    """When the version in service is deleted, the newest that is left takes over."""
    publish_toy(tmp_path)
    publish_toy(tmp_path)
    registry = registry_of(tmp_path)
    assert serve(registry) == 2
    shutil.rmtree(tmp_path / "toy" / "2")
    assert serve(registry) == 1
    shutil.rmtree(tmp_path / "toy" / "1")
    assert serve(registry) == 1


@pytest.mark.parametrize(("by", "served"), [(1e-6, 1), (1e-2, None), (float("nan"), None)])
def test_an_engine_that_does_not_give_the_golden_scores_is_not_served(
    by: float, served: int | None, repository: Path
) -> None:
    """A version is checked on the engine that will serve it, within the tolerance."""
    registry = registry_of(repository, opening=lambda graph: Shifted(graph, by))
    assert serve(registry) == served


def test_a_version_that_is_encoded_differently_here_is_not_served(tmp_path: Path) -> None:
    """Golden requests must give the golden arrays, even where the scores of those are right."""
    publish_toy(tmp_path, alter=lambda batch: replace(batch, context=batch.context + 1))
    registry = registry_of(tmp_path)
    assert serve(registry) is None
    assert "context is encoded differently" in registry.trouble


def test_an_engine_that_does_not_open_is_not_the_end(repository: Path) -> None:
    """Whatever opening a version raises, the registry refuses it and goes on."""

    def opening(graph: Path) -> Engine:
        raise MemoryError("no room")

    registry = registry_of(repository, opening=opening)
    assert serve(registry) is None
    assert "no room" in registry.trouble


def test_an_empty_repository_is_asked_again(tmp_path: Path) -> None:
    """Without a model there is none in service; the first one published is."""
    root = tmp_path / "later"
    registry = registry_of(root)
    assert serve(registry) is None
    assert registry.trouble
    publish_toy(root)
    assert serve(registry) == 1


def test_a_model_in_service_is_not_replaced_by_another_model(tmp_path: Path) -> None:
    """Without a name the model published last is served, and then no other, whatever comes."""
    publish_toy(tmp_path)
    registry = registry_of(tmp_path)
    assert serve(registry) == 1
    publish_toy(tmp_path, schema_text=TOY.replace('"toy"', '"other"'))
    assert registry.look() is None
    assert registry.current is not None
    assert registry.current.name == "toy"
    publish_toy(tmp_path, bias=1.0)
    assert serve(registry) == 2
    assert serve(registry_of(tmp_path, name="other")) == 1


def test_watching_goes_on_after_an_error(repository: Path) -> None:
    """The loop that looks for versions outlives what goes wrong in it."""
    telemetry = Telemetry()

    class Flaky(Registry):
        failures = 2

        def look(self) -> Lineup | None:
            if self.failures:
                self.failures -= 1
                raise EngineError("not yet")
            return super().look()

    async def scenario() -> None:
        registry = Flaky(repository, None, open_engine=open_engine, telemetry=telemetry)
        watching = asyncio.create_task(registry.watch(0.001))
        async with asyncio.timeout(120):
            while registry.current is None:
                await asyncio.sleep(0.005)
        watching.cancel()
        await asyncio.wait([watching])

    asyncio.run(scenario())


def test_versions_that_are_half_written_are_not_seen(repository: Path, tmp_path: Path) -> None:
    """A folder without a manifest is no version yet."""
    shutil.copytree(repository, tmp_path / "root")
    shutil.copytree(tmp_path / "root/toy/1", tmp_path / "root/toy/2")
    (tmp_path / "root/toy/2/manifest.json").unlink()
    assert Repository(tmp_path / "root", "toy").versions() == [1]
    assert serve(registry_of(tmp_path / "root")) == 1


def test_a_repository_that_empties_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As when a file system is gone for a while: what was served is served on, and the log does not
    fill with each look."""
    publish_toy(tmp_path / "root")
    toy, gone = tmp_path / "root" / "toy", tmp_path / "gone"
    registry = registry_of(tmp_path / "root")
    assert serve(registry) == 1
    toy.rename(gone)
    toy.mkdir()
    caplog.clear()
    assert [serve(registry) for _ in range(3)] == [1, 1, 1]
    assert caplog.text.count("no version is published") == 1
    assert "no version is published" in registry.trouble
    toy.rmdir()
    gone.rename(toy)
    assert serve(registry) == 1
    assert not registry.trouble

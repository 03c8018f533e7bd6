"""A repository on S3: a real server of it in a process of its own, reached through s3fs."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from mirror.remote import Remote
from model.contract.labels import LabelFile
from model.contract.repository import Repository
from tests.mirror.test_remote import same
from tests.support import free_port, publish_toy
from tests.training.test_job import command

_ADDRESS = "127.0.0.1"


def needs_s3() -> None:
    missing = [each for each in ("s3fs", "moto", "flask") if importlib.util.find_spec(each) is None]
    if missing:
        reason = f"no {missing[0]}: install the dev extra"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of moto's S3 server, which keeps everything in memory."""
    needs_s3()
    port = free_port()
    url = f"http://{_ADDRESS}:{port}"
    program = [sys.executable, "-m", "moto.server", "-H", _ADDRESS, "-p", str(port)]
    log = tmp_path_factory.mktemp("s3") / "log"
    with (
        log.open("wb") as output,
        subprocess.Popen(program, stdout=output, stderr=output) as process,
    ):
        try:
            deadline = time.monotonic() + 120
            while not _listens(port):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield url
        finally:
            process.kill()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((_ADDRESS, port)) == 0


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """An empty bucket's URL; s3fs finds server and credentials as it does in production."""
    environment = {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    httpx.post(f"{server}/moto-api/reset").raise_for_status()
    httpx.put(f"{server}/bucket").raise_for_status()
    yield "s3://bucket"
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()


def test_what_is_pushed_to_s3_comes_back(
    bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command, byte for byte, with the labels; what is there is not taken again, and what
    is published next is found though listings were asked for before."""
    source = Repository(tmp_path / "source", "toy")
    copy = Repository(tmp_path / "copy", "toy")
    url = f"{bucket}/some/models"
    publish_toy(source.root)
    assert Remote(url).names() == []
    words = ("push", "--repository", str(source.root), "--to", url)
    assert command(*words) == 0
    reader = Remote(url)
    assert (reader.names(), reader.versions("toy")) == (["toy"], [1])
    reader.pull(copy.root, "toy")
    assert same(source, copy, 1)

    publish_toy(source.root, bias=1.0)
    LabelFile(source, by="test").promote(1, "the first")
    assert Remote(url).push(source) == [2]
    assert Remote(url).push(source) == []
    reader.pull(copy.root, "toy")
    assert copy.versions() == [1, 2]
    assert same(source, copy, 2)
    assert LabelFile(copy, by="test").read() == LabelFile(source, by="test").read()


def test_a_bucket_that_is_not_there_is_not_made(
    bucket: str, server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistyped one is an error in one line, and not a new bucket of whoever has that right."""
    publish_toy(tmp_path / "source")
    words = ("push", "--repository", str(tmp_path / "source"), "--to", "s3://bukket/models")
    assert command(*words) == 1
    assert "bucket does not exist" in capsys.readouterr().err
    assert httpx.head(f"{server}/bukket").status_code == 404


def test_a_store_that_lets_nobody_in_is_an_error_of_one_line(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its package's own errors are told in its words, without a traceback."""
    publish_toy(tmp_path / "source")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert command("push", "--repository", str(tmp_path / "source"), "--to", bucket) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "the object store: NoCredentialsError: Unable to locate credentials" in said

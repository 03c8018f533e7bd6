"""TLS to the store: a real handshake, checked on both sides."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop
from redis.exceptions import ConnectionError, RedisError

from store.blocking import Clients
from store.nodes import reach
from store.url import StoreUrl
from tests.store.forms import behind_tls, certify, speaking_tls
from tests.support import running_redis


@pytest.fixture(scope="module", params=["redis", "relay"])
def secured(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[int, Path]]:
    """The port of a Redis that speaks TLS, or stands behind what does, and the folder of the
    certificates."""
    folder = tmp_path_factory.mktemp("tls")
    if request.param == "redis":
        with speaking_tls(folder) as port:
            yield port, folder
    else:
        with running_redis(folder) as redis, behind_tls(redis.port, folder) as (port, _):
            yield port, folder


def answers(url: str) -> None:
    """Ask, in both ways, the first in the event loop of a service and in Python's own. Raises what
    that raises."""
    found = StoreUrl.parse(url)

    async def scenario() -> None:
        store = reach(found, limit=1, connect_seconds=5.0)
        try:
            await store.check()
        finally:
            await store.close()

    with Clients(found, 5) as clients:
        uvloop.run(scenario())
        asyncio.run(scenario())
        clients.of("k").ping()


def test_a_store_is_reached_by_tls(secured: tuple[int, Path]) -> None:
    """With the authority that signed it and a certificate of one's own."""
    port, folder = secured
    own = f"ssl_certfile={folder / 'client.pem'}&ssl_keyfile={folder / 'client.key'}"
    answers(f"rediss://localhost:{port}/0?ssl_ca_certs={folder / 'ca.pem'}&{own}")


@pytest.mark.parametrize("missing", ["authority", "own", "file", "name", "tls"])
def test_what_is_not_proved_is_not_trusted(
    missing: str, secured: tuple[int, Path], tmp_path: Path
) -> None:
    """A server of another authority, a client without a certificate, a file that is not there, a
    server of another name, and plain text end as errors, of the connection at the latest."""
    port, folder = secured
    own = f"ssl_certfile={folder / 'client.pem'}&ssl_keyfile={folder / 'client.key'}"
    authority, scheme, host = folder / "ca.pem", "rediss", "localhost"
    if missing == "authority":
        certify(tmp_path)
        authority = tmp_path / "ca.pem"
    elif missing == "own":
        own = ""
    elif missing == "file":
        authority = tmp_path / "none"
    elif missing == "name":
        host = "127.0.0.2"
    options = f"?ssl_ca_certs={authority}&{own}"
    if missing == "tls":
        scheme, options = "redis", ""
    expected = (RedisError, OSError) if missing == "file" else ConnectionError
    with pytest.raises(expected):
        answers(f"{scheme}://{host}:{port}/0{options}")

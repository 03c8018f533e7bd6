"""TLS to the store: a real handshake, checked on both sides."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop
from redis.exceptions import RedisError

from store.blocking import Clients
from store.errors import in_words
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


async def asked_once(url: StoreUrl) -> None:
    store = reach(url, limit=1, connect_seconds=60.0)
    try:
        await store.check()
    finally:
        await store.close()


def by_service(url: StoreUrl) -> None:
    """Ask as the service does, in its event loop. Raises what that raises."""
    uvloop.run(asked_once(url))


def by_job(url: StoreUrl) -> None:
    """Ask as jobs do. Raises what that raises."""
    with Clients(url, 60) as clients:
        clients.of("k").ping()


def test_a_store_is_reached_by_tls(secured: tuple[int, Path]) -> None:
    """With the authority that signed it and a certificate of one's own."""
    port, folder = secured
    own = f"ssl_certfile={folder / 'client.pem'}&ssl_keyfile={folder / 'client.key'}"
    url = StoreUrl.parse(f"rediss://localhost:{port}/0?ssl_ca_certs={folder / 'ca.pem'}&{own}")
    by_service(url)
    by_job(url)
    asyncio.run(asked_once(url))


def test_what_connections_are_checked_by_is_made_once(
    secured: tuple[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For all of them, and though the first who asked has left: to load a system's authorities
    takes longer than a read may."""
    port, folder = secured
    own = f"ssl_certfile={folder / 'client.pem'}&ssl_keyfile={folder / 'client.key'}"
    url = f"rediss://localhost:{port}/0?ssl_ca_certs={folder / 'ca.pem'}&{own}&client_name=one"
    make, made = ssl.create_default_context, list[ssl.SSLContext]()

    def counted() -> ssl.SSLContext:
        made.append(make())
        return made[-1]

    monkeypatch.setattr("ssl.create_default_context", counted)

    async def scenario() -> None:
        store = reach(StoreUrl.parse(url), limit=3, connect_seconds=5.0)
        try:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await store.check()
            seen = b""
            while seen.count(b"name=one") < 2:  # busy ones are shared until there is another
                asking = (store.ask("", [("CLIENT", "LIST")]) for _ in range(3))
                [seen], *_ = await asyncio.wait_for(asyncio.gather(*asking), 30)
        finally:
            await store.close()

    asyncio.run(scenario())
    assert len(made) == 1


REFUSED = r"Error \(the certificate is refused: "


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ("authority", REFUSED + ".*self-signed certificate"),
        ("own", "ConnectionError"),  # the server hangs up, and says no more
        ("file", "No such file or directory"),
        ("name", REFUSED + ".*not valid for '127.0.0.2'"),
        ("tls", "ConnectionError"),
    ],
)
@pytest.mark.parametrize("form", ["", "+cluster"])
def test_what_is_not_proved_is_not_trusted(
    missing: str,
    expected: str,
    form: str,
    secured: tuple[int, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server of another authority, a client without a certificate, a file that is not there, a
    server of another name, and plain text end as errors, of the connection at the latest, which
    say why in words, also where it is one of several that are asked."""
    monkeypatch.setattr("store.nodes._LOOK_SECONDS", 60.0)  # a busy machine must not be the reason
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
    for asked in (by_service, by_job):
        with pytest.raises((RedisError, OSError)) as caught:
            asked(StoreUrl.parse(f"{scheme}{form}://{host}:{port}{options}"))
        assert re.search(expected, in_words(caught.value))
        if asked is by_job and expected.startswith(REFUSED):  # whose commands tell the error itself
            assert re.search("certificate (verify failed|is refused)", str(caught.value))

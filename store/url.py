"""The URL of the store: a Redis of its own, one behind Sentinels, or a Redis Cluster.

======================================================= ======================================
``redis://HOST:PORT/DB``                                one Redis, or Valkey
``unix://PATH?db=DB``                                   the same, through a socket file
``redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DB``     the master that these Sentinels name
``redis+cluster://HOST:PORT,HOST:PORT``                 the cluster that these nodes belong to
======================================================= ======================================

``rediss`` in place of ``redis`` is TLS, to Sentinels too. ``USER:PASSWORD@`` before the first host
is for every Redis; what is special in it is percent-encoded. After ``?`` come the options of
`OPTIONS`, of `TLS` ones where there is TLS, and of Sentinels' own credentials.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

Address = tuple[str, int]
"""Host and port."""
Form = Literal["single", "sentinel", "cluster"]

OPTIONS = frozenset({"db", "username", "password", "client_name"})
TLS = frozenset(
    {
        *("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_password"),
        *("ssl_cert_reqs", "ssl_check_hostname", "ssl_ciphers"),
    }
)
_OF_SENTINELS = {"sentinel_username": "username", "sentinel_password": "password"}
_FORMS: Mapping[str, Form] = {"": "single", "sentinel": "sentinel", "cluster": "cluster"}
_PORTS: Mapping[Form, int] = {"single": 6379, "sentinel": 26379, "cluster": 6379}
_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class StoreUrlError(ValueError):
    """What a URL of the store should be. It is never echoed: it may hold a password."""


@dataclass(frozen=True)
class StoreUrl:
    """Where the store is. ``hosts`` are the Redis itself, Sentinels, or nodes of the cluster;
    ``options`` are redis-py's, of each connection to a Redis, ``of_sentinels`` to a Sentinel."""

    form: Form
    hosts: tuple[Address, ...]
    tls: bool = False
    path: str | None = None
    service: str = ""
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    of_sentinels: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, url: str) -> StoreUrl:
        """Raises `StoreUrlError`."""
        try:
            parts = urlsplit(url, allow_fragments=False)
        except ValueError:
            raise StoreUrlError("expected HOST:PORT, with an IPv6 address in brackets") from None
        if parts.scheme == "unix":
            if not parts.path or parts.netloc:
                raise StoreUrlError("expected unix:///PATH")
            options, _ = _options(parts.query, tls=False, sentinels=False)
            return cls("single", (), path=unquote(parts.path), options=options)
        protocol, plus, form = parts.scheme.partition("+")
        if protocol not in {"redis", "rediss"} or form not in _FORMS or bool(plus) != bool(form):
            raise StoreUrlError(
                "expected redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://"
            )
        return cls._of_hosts(_FORMS[form], parts.netloc, parts.path, parts.query, protocol)

    @classmethod
    def _of_hosts(cls, form: Form, netloc: str, path: str, query: str, protocol: str) -> StoreUrl:
        tls = protocol == "rediss"
        credentials, _, hosts = netloc.rpartition("@")
        user, _, password = credentials.partition(":")
        addresses = tuple(_address(each, _PORTS[form]) for each in hosts.split(","))
        if form == "single" and len(addresses) > 1:
            raise StoreUrlError("several hosts are of redis+sentinel:// or redis+cluster://")
        options, of_sentinels = _options(query, tls=tls, sentinels=form == "sentinel")
        if user:
            options["username"] = unquote(user)
        if password:
            options["password"] = unquote(password)
        service, db = _places(form, path)
        if db:
            options["db"] = _number("the database", db)
        if form == "cluster" and options.get("db"):
            raise StoreUrlError("a cluster has one database: expected redis+cluster://HOST:PORT")
        if tls and form == "sentinel":
            secure = {name: options[name] for name in TLS & options.keys()}
            of_sentinels = {**secure, **of_sentinels}
        return cls(form, addresses, tls, None, service, options, of_sentinels)


def _address(text: str, port: int) -> Address:
    """``HOST``, ``HOST:PORT`` or ``[IPv6]:PORT``."""
    host, colon, given = text.rpartition(":")
    if not colon or given.endswith("]"):
        host, given = text, str(port)
    host = unquote(host.removeprefix("[").removesuffix("]"))
    number = _number("a port", given)
    if not host or not 0 < number <= 65535:
        raise StoreUrlError("expected HOST:PORT, and commas between several")
    return host, number


def _places(form: Form, path: str) -> tuple[str, str]:
    """Service and database that the path names."""
    names = [unquote(each) for each in path.strip("/").split("/") if each]
    if form == "sentinel":
        if not 1 <= len(names) <= 2:
            raise StoreUrlError(
                "expected redis+sentinel://HOST:PORT,HOST:PORT/SERVICE or /DB after"
            )
        return names[0], "".join(names[1:])
    if len(names) > 1:
        raise StoreUrlError("expected one database after the host")
    return "", "".join(names)


def _options(query: str, *, tls: bool, sentinels: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of Redis, and of Sentinels. Raises `StoreUrlError`."""
    options: dict[str, Any] = {}
    of_sentinels: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if sentinels and name in _OF_SENTINELS:
            of_sentinels[_OF_SENTINELS[name]] = value
        elif name in TLS and not tls:
            raise StoreUrlError("an option of TLS needs rediss")
        elif name == "ssl_check_hostname":
            if value.lower() not in _BOOLEANS:
                raise StoreUrlError("ssl_check_hostname: expected true or false")
            options[name] = _BOOLEANS[value.lower()]
        elif name == "db":
            options[name] = _number("db", value)
        elif name in TLS or name in OPTIONS:
            options[name] = value
        else:
            known = ", ".join(sorted(OPTIONS | (TLS if tls else frozenset())))
            raise StoreUrlError(f"unknown option; known are {known}")
    return options, of_sentinels


def _number(what: str, text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise StoreUrlError(f"{what} is a number")
    return int(text)

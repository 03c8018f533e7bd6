"""The URL of the store: every form of it is read, and what is wrong is said without echoing it."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store.url import StoreUrl, StoreUrlError

SECRET = "pa$$"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h:7000/2", StoreUrl("single", (("h", 7000),), options={"db": 2})),
        ("redis://h", StoreUrl("single", (("h", 6379),))),
        ("redis://[::1]:7000", StoreUrl("single", (("::1", 7000),))),
        ("redis://[::1]", StoreUrl("single", (("::1", 6379),))),
        ("unix:///run/r.sock?db=1", StoreUrl("single", (), path="/run/r.sock", options={"db": 1})),
        (
            "redis://u:p%40s@h?client_name=din",
            StoreUrl(
                "single",
                (("h", 6379),),
                options={"username": "u", "password": "p@s", "client_name": "din"},
            ),
        ),
        ("redis://:p@h", StoreUrl("single", (("h", 6379),), options={"password": "p"})),
        (
            "redis+sentinel://:p@a:1,b/main/3?sentinel_password=q",
            StoreUrl(
                "sentinel",
                (("a", 1), ("b", 26379)),
                service="main",
                options={"password": "p", "db": 3},
                of_sentinels={"password": "q"},
            ),
        ),
        (
            "rediss+sentinel://a/main?ssl_ca_certs=/ca",
            StoreUrl(
                "sentinel",
                (("a", 26379),),
                tls=True,
                service="main",
                options={"ssl_ca_certs": "/ca"},
                of_sentinels={"ssl_ca_certs": "/ca"},
            ),
        ),
        ("redis+cluster://a:1,b:2", StoreUrl("cluster", (("a", 1), ("b", 2)))),
        (
            "rediss+cluster://a?ssl_check_hostname=false",
            StoreUrl("cluster", (("a", 6379),), tls=True, options={"ssl_check_hostname": False}),
        ),
    ],
)
def test_each_form_of_a_url_is_read(url: str, expected: StoreUrl) -> None:
    """Hosts, service, database, credentials and options are where they belong."""
    assert StoreUrl.parse(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        f"{SECRET}",
        f"http://{SECRET}",
        f"redis+://{SECRET}",
        f"redis+other://{SECRET}",
        f"redis://{SECRET}:nonsense",
        f"redis://{SECRET}:0",
        f"redis://{SECRET}:65536",
        f"redis://:{SECRET}@",
        f"redis://a,{SECRET}",
        f"redis://a/{SECRET}",
        f"redis://a/1/{SECRET}",
        f"redis://a?{SECRET}=1",
        f"redis://a?ssl_ca_certs={SECRET}",
        f"redis://a?sentinel_password={SECRET}",
        f"redis://a?db={SECRET}",
        f"rediss://a?ssl_check_hostname={SECRET}",
        f"redis+sentinel://{SECRET}",
        f"redis+sentinel://a/main/{SECRET}",
        f"redis+sentinel://a/main/1/{SECRET}",
        f"redis+sentinel://a,,{SECRET}/main",
        f"redis+cluster://{SECRET}/1",
        f"unix://{SECRET}",
        f"redis://[{SECRET}",
    ],
)
def test_what_is_wrong_with_a_url_is_said_without_it(url: str) -> None:
    """A URL may hold a password, so none of it is in the message."""
    with pytest.raises(StoreUrlError) as caught:
        StoreUrl.parse(url)
    assert SECRET not in str(caught.value)
    assert str(caught.value)


@settings(deadline=None)
@given(st.text(max_size=40), st.sampled_from(["redis", "rediss+sentinel", "redis+cluster", "unix"]))
def test_any_text_is_a_url_or_an_error(text: str, scheme: str) -> None:
    """No text fails in another way."""
    with suppress(StoreUrlError):
        StoreUrl.parse(f"{scheme}://{text}")


def test_a_password_is_in_no_representation() -> None:
    """What is printed by accident holds no secret."""
    url = StoreUrl.parse(f"redis+sentinel://:{SECRET}@a/main?sentinel_password={SECRET}")
    assert SECRET not in repr(url)

"""The names of keys: all of a partition in one slot, none of two users alike."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from model.contract import store

USERS = st.text(min_size=1, max_size=30, alphabet=st.characters(codec="utf-8"))


def keys(user: str) -> list[str]:
    named = [store.profile_key, store.seen_key, store.erased_key]
    return [store.history_key("din", user, "0a"), *(name("din", user) for name in named)]


@given(user=USERS)
def test_all_keys_of_a_user_lie_in_the_slot_of_the_partitions_log(user: str) -> None:
    """Whatever the id holds, braces too: a script may change them together."""
    log = store.log_key("din", store.partition(user))
    assert len({key_slot(name.encode()) for name in [*keys(user), log]}) == 1


@given(one=USERS, other=USERS)
def test_no_two_users_share_a_key(one: str, other: str) -> None:
    """A colon in an id makes no key of someone else."""
    if one != other:
        assert not set(keys(one)) & set(keys(other))


def test_partitions_are_spread_and_stay_where_they_are() -> None:
    """A user's partition follows from the id alone."""
    found = [store.partition(str(user)) for user in range(10_000)]
    assert set(found) == set(range(store.PARTITIONS))
    assert (store.partition("42"), store.partition("Animation")) == (17, 27)
    assert re.fullmatch(r"din:\{17\}:42:p", store.profile_key("din", "42"))

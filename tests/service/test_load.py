"""Loading: what the service reads from Redis is what the logs say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
import pytest
from redis import Redis
from redis.client import Pipeline

from model.contract.encode import Encoder
from model.contract.history import KEPT, HistoryCodec
from model.contract.ids import MISSING
from model.contract.schema import Schema
from model.contract.store import (
    LAYOUTS_SECONDS,
    erased_key,
    history_key,
    layouts_key,
    partition,
    profile_key,
)
from service import load
from tests.service.test_events import with_log
from tests.support import TOY, free_port

EVENTS = {
    "user_id": ["b", "a", "a", "a", "a", "b"],
    "item_id": ["i1", "i2", "i3", "i4", "i5", "unheard-of"],
    "ts": [7, 5, 3, 5, 1, 9],
    "behaviour": [True, True, True, True, False, True],
    "rating": ["1", "2", None, "4", "5", "3"],
}
USERS = {"user_id": ["a", "b", "c"], "gender": ["F", None, "M"], "income": [12.5, 3.0, None]}


def write_logs(folder: Path, events: dict[str, Any] = EVENTS) -> Path:
    pl.DataFrame(events).write_parquet(folder / "events.parquet")
    pl.DataFrame(USERS).write_parquet(folder / "users.parquet")
    return folder


def stored(url: str, folder: Path, schema: Schema) -> dict[str, bytes]:
    """Load the logs; everything in Redis then."""
    load.write(load.read(folder, schema), schema, url, prefix="din")
    with Redis.from_url(url) as client:
        keys = sorted(client.keys())
        assert all(0 < client.ttl(key) <= LAYOUTS_SECONDS for key in keys)
        layouts = {layouts_key("din", partition(user)).encode() for user in "abc1"} & set(keys)
        described = {schema.layout.encode(): HistoryCodec.of(schema).described.encode()}
        assert layouts
        assert all(client.hgetall(key) == described for key in layouts)
        found = {key.decode(): client.get(key) for key in keys if key not in layouts}
        assert all(client.ttl(key) <= load.TIME_TO_LIVE for key in found)
        return found


def test_histories_are_packed_as_the_encoder_packs_them(
    redis_url: str, tmp_path: Path, schema: Schema, encoder: Encoder
) -> None:
    """Behaviours only, oldest first, ties in the order of the logs, missing values missing."""
    found = stored(redis_url, write_logs(tmp_path), schema)
    expected = {
        "a": [
            {"item_id": "i3", "ts": 3},
            {"item_id": "i2", "ts": 5, "rating": "2"},
            {"item_id": "i4", "ts": 5, "rating": "4"},
        ],
        "b": [
            {"item_id": "i1", "ts": 7, "rating": "1"},
            {"item_id": "unheard-of", "ts": 9, "rating": "3"},
        ],
    }
    for user, behaviours in expected.items():
        data = found.pop(history_key("din", user, schema.layout))
        assert data == encoder.records(behaviours).tobytes()
    profiles = {key: orjson.loads(value) for key, value in found.items()}
    assert profiles == {
        profile_key("din", "a"): {"gender": "F", "income": 12.5},
        profile_key("din", "b"): {"income": 3.0},
        profile_key("din", "c"): {"gender": "M"},
    }


def test_how_far_it_is_is_counted_in_columns(tmp_path: Path, schema: Schema) -> None:
    """User, item, ts and rating: the first three at once."""
    told: list[tuple[int, int]] = []
    load.read(write_logs(tmp_path), schema, lambda done, total: told.append((done, total)))
    assert told == [(0, 4), (3, 4), (4, 4)]


def test_just_the_most_recent_behaviours_are_kept(
    redis_url: str, tmp_path: Path, schema: Schema, encoder: Encoder
) -> None:
    """Of a very active user a multiple of what the model looks at is stored."""
    count = 100
    events = {
        "user_id": ["a"] * count,
        "item_id": [f"i{n}" for n in range(count)],
        "ts": list(range(count)),
        "behaviour": [True] * count,
        "rating": ["5"] * count,
    }
    found = stored(redis_url, write_logs(tmp_path, events), schema)
    records = encoder.codec.unpack(found[history_key("din", "a", schema.layout)])
    kept = KEPT * schema.history_length
    assert records["ts"].tolist() == list(range(count - kept, count))


def test_behaviours_of_one_time_keep_the_order_of_the_logs(
    tmp_path: Path, schema: Schema, encoder: Encoder
) -> None:
    """Ties are not shuffled, however many there are."""
    count = 5000
    items = [f"i{n}" for n in range(count)]
    events = {
        "user_id": [f"u{n % 3}" for n in range(count)],
        "item_id": items,
        "ts": [n // 1000 for n in range(count)],
        "behaviour": [True] * count,
        "rating": ["5"] * count,
    }
    histories = load.read(write_logs(tmp_path, events), schema)
    begin = 0
    for user, end in zip(histories.users, histories.ends.tolist(), strict=True):
        own = [{"item_id": i, "ts": 0} for i in items[int(user[1:]) :: 3]]
        expected = encoder.records(own)["item_id"]
        assert (histories.records["item_id"][begin:end] == expected).all()
        begin = end


def test_integer_ids_are_the_ids_of_their_text(
    redis_url: str, tmp_path: Path, schema: Schema, encoder: Encoder
) -> None:
    """A column of integers gives the keys of the same ids as strings."""
    events = {**EVENTS, "item_id": [1, 2, 3, 4, 5, 6], "user_id": [1, 1, 1, 1, 1, 1]}
    found = stored(redis_url, write_logs(tmp_path, events), schema)
    records = encoder.codec.unpack(found[history_key("din", "1", schema.layout)])
    [expected] = encoder.records([{"item_id": "3", "ts": 0}])["item_id"]
    assert records["item_id"][0] == expected


def test_what_is_missing_is_named(tmp_path: Path, schema: Schema) -> None:
    """A folder without logs, or logs without a column, is one clear error."""
    with pytest.raises(load.LoadError, match=r"events\.parquet"):
        load.read(tmp_path, schema)
    write_logs(tmp_path, {name: values for name, values in EVENTS.items() if name != "item_id"})
    with pytest.raises(load.LoadError, match="item_id"):
        load.read(tmp_path, schema)
    (tmp_path / "events.parquet").write_bytes(b"no parquet")
    with pytest.raises(load.LoadError, match=r"events\.parquet"):
        load.read(tmp_path, schema)


def test_ids_that_went_through_a_float_are_refused(tmp_path: Path, schema: Schema) -> None:
    """A float column of ids is an error, for no id may go through one."""
    write_logs(tmp_path, {**EVENTS, "item_id": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]})
    with pytest.raises(load.LoadError, match="item_id"):
        load.read(tmp_path, schema)


def test_a_redis_that_is_not_there_is_one_clear_error(tmp_path: Path, schema: Schema) -> None:
    """The connection error comes back as ours."""
    histories = load.read(write_logs(tmp_path), schema)
    with pytest.raises(load.LoadError, match="Redis"):
        load.write(histories, schema, f"redis://127.0.0.1:{free_port()}/0", prefix="din")


def test_what_users_have_stays_and_who_was_erased_stays_so(
    redis_url: str, tmp_path: Path, schema: Schema
) -> None:
    """Events since may be newer than the logs; --replace says that the logs are right."""
    folder = write_logs(tmp_path)
    of_a = history_key("din", "a", schema.layout)
    with Redis.from_url(redis_url) as client:
        client.set(of_a, b"from events")
        client.set(erased_key("din", "b"), 5)
        count = load.write(load.read(folder, schema), schema, redis_url, prefix="din")
        assert count == 2  # the profiles of a and c
        assert client.get(of_a) == b"from events"
        assert not client.exists(history_key("din", "b", schema.layout), profile_key("din", "b"))
        load.write(load.read(folder, schema), schema, redis_url, prefix="din", replace=True)
        assert client.get(of_a) != b"from events"
        assert not client.exists(history_key("din", "b", schema.layout), profile_key("din", "b"))


def test_who_is_erased_at_any_moment_stays_so(
    redis_url: str, tmp_path: Path, schema: Schema, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each round trip of the loading once: no key of the user is left."""
    histories = load.read(write_logs(tmp_path), schema)
    codec, execute = HistoryCodec.of(schema), Pipeline.execute
    trips = 0

    def erasing(self: Any) -> Any:
        nonlocal trips
        if trips == moment:
            with_log(redis_url, lambda log: log.erase("a", codec))
        trips += 1
        return execute(self)

    monkeypatch.setattr(Pipeline, "execute", erasing)
    moment = 0
    while trips >= moment:
        trips = 0
        with Redis.from_url(redis_url) as client:
            client.flushall()
            load.write(histories, schema, redis_url, prefix="din")
            assert client.exists(history_key("din", "b", schema.layout))
            left = [history_key("din", "a", schema.layout), profile_key("din", "a")]
            assert trips <= moment or not client.exists(*left)
        moment += 1
    assert moment > 2


def test_a_history_in_an_older_layout_is_the_users_history(
    redis_url: str, tmp_path: Path, schema: Schema
) -> None:
    """Loaded again after the schema's behaviour fields changed nothing is doubled; --replace leaves
    the new one alone."""
    folder = write_logs(tmp_path)
    other = Schema.parse(TOY.replace('[[behaviour]]\nname = "rating"\n', ""))
    old, new = (history_key("din", "a", each.layout) for each in (schema, other))
    stored(redis_url, folder, schema)
    with Redis.from_url(redis_url) as client:
        assert load.write(load.read(folder, other), other, redis_url, prefix="din") == 0
        assert client.exists(old)
        assert not client.exists(new)
        replaced = load.write(
            load.read(folder, other), other, redis_url, prefix="din", replace=True
        )
        assert replaced == 5  # two histories, three profiles
        assert client.exists(new)
        assert not client.exists(old)
        assert orjson.loads(client.get(profile_key("din", "a"))) == {"gender": "F", "income": 12.5}


def test_fields_that_the_logs_lack_are_missing(
    redis_url: str, tmp_path: Path, encoder: Encoder
) -> None:
    """Those of a newer schema than the logs were prepared for."""
    newer = """
[[behaviour]]
name = "rating"

[[behaviour]]
name = "device"

[[behaviour]]
name = "dwell"
kind = "number"
boundaries = [1.0]
"""
    user = '[[user]]\nname = "city"\n'
    schema = Schema.parse(TOY.replace('[[behaviour]]\nname = "rating"\n', newer) + user)
    found = stored(redis_url, write_logs(tmp_path), schema)
    data = found[history_key("din", "b", schema.layout)]
    records = HistoryCodec.of(schema).unpack(data)
    expected = encoder.records([{"item_id": "i1", "ts": 7, "rating": "1"}])
    assert records[["ts", "item_id", "rating"]][:1].tolist() == expected.tolist()
    assert records["device"].tolist() == [MISSING, MISSING]
    assert np.isnan(records["dwell"]).all()
    assert orjson.loads(found[profile_key("din", "b")]) == {"income": 3.0}


def test_what_is_known_of_a_layout_lives_as_long_as_its_histories(
    redis_url: str, tmp_path: Path, schema: Schema
) -> None:
    """Whoever wrote the last one, and for however long."""
    histories = load.read(write_logs(tmp_path), schema)
    place = layouts_key("din", partition("a"))
    with Redis.from_url(redis_url) as client:
        for seconds in (3 * LAYOUTS_SECONDS, load.TIME_TO_LIVE):
            load.write(histories, schema, redis_url, prefix="din", seconds=seconds, replace=True)
            assert client.ttl(place) > 2 * LAYOUTS_SECONDS

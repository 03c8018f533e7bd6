"""Events: into the history and the log at once, counted once, in order; users are forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from model.contract.encode import Encoder
from model.contract.history import KEPT, HistoryCodec
from model.contract.log import Erased, Event, load
from model.contract.schema import Schema
from model.contract.store import (
    LAYOUTS_SECONDS,
    erased_key,
    history_key,
    layouts_key,
    log_key,
    partition,
    profile_key,
    seen_key,
)
from service.errors import Unavailable
from service.events import Erasure, EventLog, Result
from service.scripts import ACCEPTED, ERASED, SEEN
from tests.support import TOY, free_port, toy_encoder
from tests.training.entries import score

NOW = 1_800_000_000
DAY_MS = 86_400_000
Got = TypeVar("Got")


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    with Redis.from_url(redis_url) as opened:
        yield opened


def with_log(url: str, work: Callable[[EventLog], Awaitable[Got]], **changes: Any) -> Got:
    """What ``work`` makes of an event log whose clock stands at `NOW`."""
    options: dict[str, Any] = {
        "prefix": "din",
        "timeout": 5.0,
        "connections": 4,
        "horizon_ms": 90 * DAY_MS,
        "tombstone_ms": 400 * DAY_MS,
        "limit": 1000,
        "clock": lambda: NOW,
    }

    async def scenario() -> Got:
        async with EventLog(url, **{**options, **changes}) as log:
            return await work(log)

    return asyncio.run(scenario())


def append(url: str, encoder: Encoder, *raws: Any, **changes: Any) -> list[Result]:
    return with_log(url, lambda log: log.append(raws, encoder), **changes)


def event(ts: int, item: str = "i1", action: str = "click", **more: Any) -> dict[str, Any]:
    return {"user_id": "u", "item_id": item, "action": action, "ts": NOW + ts, **more}


def history(client: Any, encoder: Encoder, user: str = "u") -> list[Any]:
    """ts (from `NOW`), item key and rating of what is stored."""
    data = client.get(history_key("din", user, encoder.schema.layout)) or b""
    return [(int(r["ts"]) - NOW, int(r["item_id"])) for r in encoder.codec.unpack(data)]


def logged(client: Any, user: str = "u") -> list[Any]:
    """The entries of the user's partition."""
    found = client.xrange(log_key("din", partition(user)))
    return [load(fields[b"k"].decode(), fields[b"d"]) for _, fields in found]


def test_a_behaviour_enters_history_and_log_and_an_impression_the_log_alone(
    client: Any, redis_url: str, encoder: Encoder
) -> None:
    """What is stored is what the encoder would store, and the log has it word for word."""
    click = event(-5, rating="4", dwell=2.5, request_id="r1")
    shown = event(-6, "i2", "impression", hour=7)
    assert append(redis_url, encoder, click, shown) == [Result("accepted")] * 2
    expected = encoder.records([{"item_id": "i1", "ts": NOW - 5, "rating": "4"}])
    assert client.get(history_key("din", "u", encoder.schema.layout)) == expected.tobytes()
    first, second = logged(client)
    assert first == Event(
        "u", "i1", "click", NOW - 5, NOW * 1000, "r1", {"rating": "4", "dwell": 2.5}
    )
    assert (second.action, second.fields, second.request_id) == ("impression", {"hour": 7}, None)


def test_a_retried_event_counts_once(client: Any, redis_url: str, encoder: Encoder) -> None:
    """In one request or in the next, with whatever extra fields it comes again."""
    found = append(redis_url, encoder, event(-5), event(-5, rating="1"), event(-4))
    assert [each.status for each in found] == ["accepted", "duplicate", "accepted"]
    again = append(redis_url, encoder, event(-4), event(-5), event(-5, action="conversion"))
    assert [each.status for each in again] == ["duplicate", "duplicate", "accepted"]
    assert [ts for ts, _ in history(client, encoder)] == [-5, -4]  # both deeds are one record
    assert len(logged(client)) == 3


def test_two_deeds_are_two_records_where_the_schema_tells_them_apart(
    client: Any, redis_url: str
) -> None:
    """By its behaviour field action; and still once each, when the events are forgotten."""
    text = TOY.replace('name = "rating"', 'name = "rating"\n\n[[behaviour]]\nname = "action"')
    both = toy_encoder(Schema.parse(text))
    deeds = event(-5), event(-5, action="conversion")
    for _ in range(2):
        found = append(redis_url, both, *deeds)
        assert [each.status for each in found] == ["accepted", "accepted"]
        assert [ts for ts, _ in history(client, both)] == [-5, -5]
        client.delete(seen_key("din", "u"))


def test_a_retry_after_many_others_is_still_stored_once(
    client: Any, redis_url: str, encoder: Encoder
) -> None:
    """Beyond the events that are remembered, the history itself knows its records."""
    append(redis_url, encoder, event(0, "i3"))
    many = [event(-n, "i2", "impression") for n in range(1, SEEN + 1)]
    append(redis_url, encoder, *many, limit=5000)
    before = client.get(history_key("din", "u", encoder.schema.layout))
    again = event(0, "i3"), event(0, "i3", rating="1")
    for each in again:
        [found] = append(redis_url, encoder, each, limit=5000)
        append(
            redis_url, encoder, *(event(-n, "i1", "impression") for n in range(SEEN)), limit=5000
        )
        assert found.status == "accepted"  # collecting it finds the same key in the files
    assert client.get(history_key("din", "u", encoder.schema.layout)) == before


@settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_events_land_in_order_however_they_come(
    client: Any, redis_url: str, encoder: Encoder, data: st.DataObject
) -> None:
    """The history is the last records by ts, at one ts in the order of arrival, each once; those of
    one request go in together."""
    client.flushall()
    kept = KEPT * encoder.schema.history_length
    arrivals = data.draw(
        st.lists(
            st.tuples(st.integers(-30, 0), st.sampled_from(["i1", "i2", "i3"])), max_size=2 * kept
        )
    )
    size = data.draw(st.integers(1, 7))
    for begin in range(0, len(arrivals), size):
        batch = [event(ts, item) for ts, item in arrivals[begin : begin + size]]
        append(redis_url, encoder, *batch)
    expected: list[tuple[int, str]] = []
    for begin in range(0, len(arrivals), size):
        first = dict.fromkeys(arrivals[begin : begin + size])
        new = [each for each in first if each not in arrivals[:begin]]
        expected = sorted([*expected, *new], key=lambda each: each[0])[-kept:]
    raw = [{"item_id": item, "ts": NOW + ts} for ts, item in expected]
    keys = encoder.records(raw)["item_id"].tolist()
    assert history(client, encoder) == [
        (ts, key) for (ts, _), key in zip(expected, keys, strict=True)
    ]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_order_of_a_request_changes_neither_history_nor_results(
    client: Any, redis_url: str, encoder: Encoder, data: st.DataObject
) -> None:
    """On top of any history, full or not, and with events that were counted before."""
    times = st.lists(st.integers(-60, 0), max_size=50, unique=True)
    stored, sent = data.draw(times), data.draw(times)
    found = []
    for order in (sent, sorted(sent), data.draw(st.permutations(sent))):
        client.flushall()
        append(redis_url, encoder, *map(event, stored))
        results = append(redis_url, encoder, *map(event, order))
        found.append((dict(zip(order, results, strict=True)), history(client, encoder)))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("ts", "limit", "expected"),
    [
        (60, 1000, ("accepted", None)),
        (61, 1000, ("refused", "in the future")),
        (-90 * 86_400, 1000, ("accepted", None)),
        (-90 * 86_400 - 1, 1000, ("refused", "90 days ago")),
        (0, 0, ("refused", "is it collected")),
    ],
)
def test_what_comes_too_soon_too_late_or_too_much_is_refused_with_a_reason(
    ts: int,
    limit: int,
    expected: tuple[str, str | None],
    client: Any,
    redis_url: str,
    encoder: Encoder,
) -> None:
    """And leaves nothing behind."""
    [found] = append(redis_url, encoder, event(ts), limit=limit)
    status, reason = expected
    assert found.status == status
    if reason is not None:
        assert reason in (found.reason or "")
        assert not client.keys("din:{*")


def test_milliseconds_are_told_from_seconds(redis_url: str, encoder: Encoder) -> None:
    """The schema says in which unit its times are."""
    text = 'name = "ms"\nts_unit = "ms"\n[[item]]\nname = "item_id"\n'
    other = Encoder(Schema.parse(text), encoder.tables, encoder.catalogue)
    raw = {**event(0), "ts": NOW * 1000 + 59_999}
    late = {**event(0), "ts": NOW * 1000 + 60_001}
    found = append(redis_url, other, raw, late)
    assert [each.status for each in found] == ["accepted", "refused"]


def test_a_behaviour_older_than_all_of_a_full_history_is_logged_alone(
    client: Any, redis_url: str, encoder: Encoder
) -> None:
    """A late click is the label of its impression; no model looks at so old a behaviour."""
    kept = KEPT * encoder.schema.history_length
    append(redis_url, encoder, *(event(n - kept) for n in range(kept)))
    before = history(client, encoder)
    late = event(-kept - 1, "i9", request_id="r1")
    assert append(redis_url, encoder, late) == [Result("accepted")]
    assert append(redis_url, encoder, late) == [Result("duplicate")]
    assert history(client, encoder) == before
    assert len(before) == kept
    assert [each.request_id for each in logged(client)] == [None] * kept + ["r1"]


def test_one_bad_event_harms_no_other(client: Any, redis_url: str, encoder: Encoder) -> None:
    """Each is answered in its place, and says which field was wrong."""
    found = append(
        redis_url, encoder, event(0), "no event", {**event(0), "item_id": ""}, event(-1, "i2")
    )
    assert [each.status for each in found] == ["accepted", "refused", "refused", "accepted"]
    assert [each.field for each in found] == [None, "event", "item_id", None]
    assert len(history(client, encoder)) == 2


def test_a_value_that_does_not_fit_a_behaviour_field_is_refused(
    redis_url: str, encoder: Encoder
) -> None:
    """It is named as the caller named it."""
    [found] = append(redis_url, encoder, event(0, rating=["5"]))
    assert (found.status, found.field) == ("refused", "rating")


def test_every_key_has_a_time_to_live(client: Any, redis_url: str, encoder: Encoder) -> None:
    """Histories and logs live as long as events may be old, tombstones longer."""
    append(redis_url, encoder, event(0))
    with_log(redis_url, lambda log: log.erase("v", encoder.codec))
    found = {key.decode(): client.pttl(key) for key in client.scan_iter()}
    assert len(found) == 6
    assert all(0 < ttl <= LAYOUTS_SECONDS * 1000 for ttl in found.values())
    assert found[history_key("din", "u", encoder.schema.layout)] <= 90 * DAY_MS
    assert found[erased_key("din", "v")] > 90 * DAY_MS


def test_what_is_known_of_a_layout_lives_as_long_as_its_histories(
    client: Any, redis_url: str, encoder: Encoder
) -> None:
    """Also where they live longer than it otherwise would, and another service keeps them less."""
    place = layouts_key("din", partition("u"))
    append(redis_url, encoder, event(0), horizon_ms=3650 * DAY_MS)
    append(redis_url, encoder, event(-1))
    assert client.pttl(place) > 3649 * DAY_MS
    assert client.pttl(place) > client.pttl(history_key("din", "u", encoder.schema.layout))


def test_a_user_is_forgotten_in_every_layout_and_in_the_log(
    client: Any, redis_url: str, encoder: Encoder
) -> None:
    """What others did stays; what is left of the user says when, and no earlier event returns."""
    neighbour = next(f"n{n}" for n in range(999) if partition(f"n{n}") == partition("u"))
    old = HistoryCodec([("gone", "category")])
    client.hset(layouts_key("din", partition("u")), old.layout, old.described)
    client.set(history_key("din", "u", old.layout), bytes(old.width))
    client.set(profile_key("din", "u"), b"{}")
    append(redis_url, encoder, event(-9), event(-8), {**event(-7), "user_id": neighbour})
    gone = with_log(redis_url, lambda log: log.erase("u", encoder.codec))
    assert gone == Erasure(keys=4, entries=2)
    [other, tombstone] = logged(client)
    assert other.user_id == neighbour
    assert tombstone == Erased("u", NOW * 1000)
    left = {key.decode() for key in client.scan_iter() if key.decode().endswith(":x")}
    assert left == {erased_key("din", "u")}
    assert not client.exists(seen_key("din", "u"), history_key("din", "u", encoder.schema.layout))
    # What was sent before, by a clock that is ahead, does not come back either.
    found = append(redis_url, encoder, event(0), event(60))
    assert [each.status for each in found] == ["refused", "refused"]
    assert "erased" in (found[0].reason or "")
    [later] = append(redis_url, encoder, event(61), clock=lambda: NOW + 30)
    assert later.status == "accepted"
    assert [ts for ts, _ in history(client, encoder)] == [61]


def test_a_score_of_a_minute_after_an_erasure_is_not_logged(client: Any, redis_url: str) -> None:
    """It may have been made before, by a process whose clock is ahead."""
    with_log(redis_url, lambda log: log.erase("u"))

    def note(seconds: int) -> list[int]:
        at = score("u", "r", received=(NOW + seconds) * 1000)
        return with_log(redis_url, lambda log: log.note([log.noting(at)]))

    assert [note(seconds) for seconds in (-1, 0, 60, 61)] == [[ERASED]] * 3 + [[ACCEPTED]]
    assert [each.received for each in logged(client)] == [NOW * 1000, (NOW + 61) * 1000]


def test_forgetting_survives_a_damaged_layout_and_needs_no_model(
    client: Any, redis_url: str, encoder: Encoder
) -> None:
    """What was written in a known layout goes, whatever else stands there."""
    append(redis_url, encoder, event(0))
    client.hset(layouts_key("din", partition("u")), "x", b"\xff nonsense")
    assert with_log(redis_url, lambda log: log.erase("u")) == Erasure(keys=2, entries=1)


def test_what_redis_says_is_not_logged(
    client: Any, redis_url: str, encoder: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    """It repeats the command, and the user's id stands in its keys."""
    client.lpush(history_key("din", "s3cr3t", encoder.schema.layout), "no history")
    with pytest.raises(Unavailable) as found:
        append(redis_url, encoder, {**event(0), "user_id": "s3cr3t"})
    assert found.value.__cause__ is None
    assert "s3cr3t" not in caplog.text
    assert "ResponseError" in caplog.text


def test_forgetting_goes_through_a_long_log(
    client: Any, redis_url: str, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step by step, to its end."""
    monkeypatch.setattr("service.events._AT_ONCE", 3)
    append(redis_url, encoder, *(event(-n) for n in range(10)))
    assert with_log(redis_url, lambda log: log.erase("u", encoder.codec)).entries == 10
    assert [type(each) for each in logged(client)] == [Erased]


def test_forgetting_an_unknown_user_leaves_a_tombstone(
    client: Any, redis_url: str, encoder: Encoder
) -> None:
    """Collected files may know the user."""
    assert with_log(redis_url, lambda log: log.erase("v", encoder.codec)) == Erasure(0, 0)
    assert logged(client, "v") == [Erased("v", NOW * 1000)]


def test_a_store_that_forgot_its_scripts_is_taught_again(
    client: Any, redis_url: str, encoder: Encoder
) -> None:
    """As after a restart or a failover."""
    append(redis_url, encoder, event(-1))
    client.script_flush()
    assert append(redis_url, encoder, event(0)) == [Result("accepted")]


def test_a_store_that_is_away_takes_nothing_and_says_so(encoder: Encoder) -> None:
    """The caller may send the same again."""
    with pytest.raises(Unavailable, match="send it again"):
        append(f"redis://127.0.0.1:{free_port()}/0", encoder, event(0))


def test_a_record_that_was_cut_gives_way(client: Any, redis_url: str, encoder: Encoder) -> None:
    """Of a damaged history nothing can be trusted; what comes now begins a new one."""
    client.set(history_key("din", "u", encoder.schema.layout), b"123")
    append(redis_url, encoder, event(0))
    assert [ts for ts, _ in history(client, encoder)] == [0]


def test_the_log_holds_json_that_any_reader_understands(
    client: Any, redis_url: str, encoder: Encoder
) -> None:
    """The kind, the user and an object: nothing of ours is needed to read it."""
    append(redis_url, encoder, event(0))
    [(_, fields)] = client.xrange(log_key("din", partition("u")))
    assert (fields[b"k"], fields[b"u"]) == (b"event", b"u")
    assert orjson.loads(fields[b"d"])["item_id"] == "i1"

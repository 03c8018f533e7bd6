"""The behaviour store on a real Redis: one round trip, bounded delay, and it never raises."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from redis import Redis

from model.contract.encode import Encoder
from model.contract.history import HistoryCodec
from model.contract.schema import Schema
from model.contract.store import history_key, layouts_key, partition, profile_key
from service.events import EventLog
from service.features import BehaviourStore, Breaker, Stored
from tests.support import TOY, RedisProcess, free_port, running_redis

SHORT, PATIENT = 0.2, 10.0


def store_of(url: str, breaker: Breaker | None = None, timeout: float = PATIENT) -> BehaviourStore:
    return BehaviourStore(
        url,
        prefix="din",
        timeout=timeout,
        connections=4,
        breaker=breaker or Breaker(1000, 1.0),
    )


def writer_of(url: str) -> EventLog:
    times = {"timeout": PATIENT, "horizon_ms": 86_400_000, "tombstone_ms": 86_400_000}
    return EventLog(url, prefix="din", connections=4, limit=1000, **times)


def read(url: str, encoder: Encoder, timeout: float = PATIENT) -> tuple[Stored, float]:
    """One read, and the seconds it took."""

    async def scenario() -> tuple[Stored, float]:
        store = store_of(url, timeout=timeout)
        started = time.perf_counter()
        stored = await store.read("u", encoder.schema, encoder.codec, history=True, budget=99)
        took = time.perf_counter() - started
        await store.__aexit__(None, None, None)
        return stored, took

    return asyncio.run(scenario())


@pytest.fixture
def client(redis_url: str) -> Any:
    with Redis.from_url(redis_url) as opened:
        yield opened


def packed(encoder: Encoder, count: int) -> bytes:
    raw = [{"item_id": f"i{n}", "ts": n, "rating": "3"} for n in range(count)]
    return bytes(encoder.records(raw).tobytes())


def test_the_most_recent_behaviours_and_the_profile_are_read(
    client: Any, redis_url: str, encoder: Encoder, schema: Schema
) -> None:
    """Of a long history just the last history_length records come back, oldest first."""
    client.set(history_key("din", "u", schema.layout), packed(encoder, 9))
    client.set(profile_key("din", "u"), b'{"gender":"F"}')
    stored, _ = read(redis_url, encoder)
    assert stored.history["ts"].tolist() == [4, 5, 6, 7, 8]
    assert stored.profile == {"gender": "F"}
    assert stored.degraded is None


def test_an_unknown_user_is_not_degraded(redis_url: str, encoder: Encoder) -> None:
    """A user without keys has an empty history and profile, and nothing failed."""
    stored, _ = read(redis_url, encoder)
    assert (len(stored.history), stored.profile, stored.degraded) == (0, {}, None)


def test_history_and_profile_take_one_round_trip(
    client: Any, redis_url: str, encoder: Encoder, schema: Schema
) -> None:
    """Between the service and Redis the direction of traffic changes once per read."""
    client.set(history_key("din", "u", schema.layout), packed(encoder, 5))
    port = int(redis_url.rpartition(":")[2].partition("/")[0])
    traffic: list[str] = []

    async def relay(reader: Any, writer: Any, side: str) -> None:
        while data := await reader.read(65536):
            if traffic[-1:] != [side]:
                traffic.append(side)
            writer.write(data)
        writer.close()

    async def scenario() -> None:
        relays: list[asyncio.Task[None]] = []

        async def accept(reader: Any, writer: Any) -> None:
            upstream, downstream = await asyncio.open_connection("127.0.0.1", port)
            relays.append(asyncio.create_task(relay(upstream, writer, "answer")))
            await relay(reader, downstream, "question")

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        async with store_of(url) as store:
            for _ in range(2):
                traffic.clear()
                stored = await store.read("u", schema, encoder.codec, history=True, budget=9)
                assert len(stored.history) == 5
                assert traffic == ["question", "answer"]
        server.close()
        await asyncio.gather(*relays)

    asyncio.run(scenario())


def test_histories_of_all_layouts_are_read_together(
    client: Any, redis_url: str, encoder: Encoder, schema: Schema
) -> None:
    """What was stored before the schema changed is still there, in its place in time; the fields
    that it lacks are missing, and a damaged description of a layout harms no one."""
    old = HistoryCodec([("rating", "category"), ("shop", "number")])
    before = old.pack({"ts": [0, 2, 7], "item_id": [1, 2, 3], "rating": [9, 8, 7], "shop": [1] * 3})
    client.set(history_key("din", "u", old.layout), before.tobytes())
    client.set(history_key("din", "u", schema.layout), packed(encoder, 2))
    layouts = {old.layout: old.described, "x": "nonsense"}
    client.hset(layouts_key("din", partition("u")), mapping=layouts)
    stored, _ = read(redis_url, encoder)
    assert stored.degraded is None
    assert stored.history.dtype == encoder.codec.dtype
    assert stored.history["ts"].tolist() == [0, 0, 1, 2, 7]
    assert stored.history["rating"][[0, 3, 4]].tolist() == [9, 8, 7]


def test_what_was_wanted_once_is_read_from_then_on(
    client: Any, redis_url: str, encoder: Encoder, schema: Schema
) -> None:
    """A version of another layout that takes over sees what its predecessor's users did."""
    client.set(history_key("din", "u", schema.layout), packed(encoder, 3))
    text = TOY.replace('name = "rating"', 'name = "shop"')
    other = Encoder(Schema.parse(text), encoder.tables, encoder.catalogue)

    async def scenario() -> Stored:
        async with store_of(redis_url) as store:
            await store.read("u", schema, encoder.codec, history=True, budget=9)
            return await store.read("u", other.schema, other.codec, history=True, budget=9)

    assert asyncio.run(scenario()).history["ts"].tolist() == [0, 1, 2]


def test_an_event_in_a_layout_that_is_new_is_seen_by_the_next_read(
    redis_url: str, encoder: Encoder, schema: Schema
) -> None:
    """Though another process wrote it, whose version this one has never met: what is written says
    so in the same round trip."""
    dwell = '[[behaviour]]\nname = "dwell"\nkind = "number"\nboundaries = [1.0]\n'
    newer = Encoder(Schema.parse(TOY + dwell), encoder.tables, encoder.catalogue)
    event = {"user_id": "u", "item_id": "i1", "action": "click", "ts": int(time.time())}

    async def scenario() -> list[int]:
        found = []
        async with store_of(redis_url) as store, writer_of(redis_url) as other:
            for at, by in enumerate([encoder, newer, encoder, newer]):
                await other.append([{**event, "ts": event["ts"] - at}], by)
                stored = await store.read("u", schema, encoder.codec, history=True, budget=9)
                assert stored.degraded is None
                found.append(len(stored.history))
        return found

    assert asyncio.run(scenario()) == [1, 2, 3, 4]


@pytest.mark.parametrize("cut", [1, 23])
def test_a_history_cut_inside_a_record_is_not_trusted(
    cut: int, client: Any, redis_url: str, encoder: Encoder, schema: Schema
) -> None:
    """A history of a wrong length, short or long, gives none and says so; the profile stays."""
    client.set(history_key("din", "u", schema.layout), packed(encoder, 9)[:-cut])
    client.set(profile_key("din", "u"), b'{"gender":"F"}')
    stored, _ = read(redis_url, encoder)
    assert (len(stored.history), stored.degraded) == (0, "history_unavailable")
    assert stored.profile == {"gender": "F"}


@pytest.mark.parametrize("profile", [b"{", b"[1]", b"\xff", b""])
def test_a_corrupt_profile_leaves_the_history(
    profile: bytes, client: Any, redis_url: str, encoder: Encoder, schema: Schema
) -> None:
    """A profile that is no JSON object is left out and reported."""
    client.set(history_key("din", "u", schema.layout), packed(encoder, 3))
    client.set(profile_key("din", "u"), profile)
    stored, _ = read(redis_url, encoder)
    assert (len(stored.history), stored.profile) == (3, {})
    assert stored.degraded == "profile_unavailable"


@pytest.mark.parametrize("key", ["history", "profile"])
def test_a_key_of_another_type_degrades_its_user_alone(
    key: str, client: Any, redis_url: str, encoder: Encoder, schema: Schema
) -> None:
    """However often that user is asked for, the store is not taken for one that fails."""
    place = {"history": history_key("din", "u", schema.layout), "profile": profile_key("din", "u")}
    client.lpush(place[key], "x")
    client.set(history_key("din", "other", schema.layout), packed(encoder, 3))

    async def scenario() -> tuple[list[Stored], Stored, Breaker]:
        breaker = Breaker(2, 60.0)
        async with store_of(redis_url, breaker) as store:

            async def ask(user: str) -> Stored:
                return await store.read(user, schema, encoder.codec, history=True, budget=99)

            return [await ask("u") for _ in range(3)], await ask("other"), breaker

    stored, other, breaker = asyncio.run(scenario())
    assert [each.degraded for each in stored] == ["history_unavailable"] * 3
    assert (len(other.history), other.degraded) == (3, None)
    assert not breaker.open


def test_a_store_that_refuses_degrades_at_once(encoder: Encoder) -> None:
    """Nothing listens: no history, no exception, no waiting for retries."""
    stored, took = read(f"redis://127.0.0.1:{free_port()}/0", encoder)
    assert (len(stored.history), stored.degraded) == (0, "history_unavailable")
    assert took < PATIENT / 2


def test_a_store_that_hangs_costs_its_timeout(encoder: Encoder) -> None:
    """A server that accepts and never answers delays a read by the timeout, not by more."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        stored, took = read(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", encoder, SHORT)
    assert stored.degraded == "history_unavailable"
    assert SHORT / 2 < took < PATIENT / 2


def test_a_store_that_hangs_later_costs_no_more(
    encoder: Encoder, schema: Schema, tmp_path: Path
) -> None:
    """A connection that answered before and hangs now delays by the timeout, clean-up included."""

    async def scenario(server: RedisProcess) -> None:
        store = BehaviourStore(
            server.url, prefix="din", timeout=1.0, connections=4, breaker=Breaker(1000, 1.0)
        )
        async with store:
            for hanging, slowest in ((False, 30.0), (True, 1.8), (True, 1.8)):
                if hanging:
                    server.hang()
                started = time.perf_counter()
                stored = await store.read("u", schema, encoder.codec, history=True, budget=9)
                assert time.perf_counter() - started < slowest
                assert (stored.degraded == "history_unavailable") is hanging
            server.kill()

    with running_redis(tmp_path) as server:
        asyncio.run(scenario(server))


def test_a_smaller_budget_ends_a_read_earlier(encoder: Encoder, schema: Schema) -> None:
    """The caller's own budget bounds a read below the store's timeout."""

    async def scenario(url: str) -> float:
        store = BehaviourStore(
            url, prefix="din", timeout=30, connections=1, breaker=Breaker(9, 1.0)
        )
        started = time.perf_counter()
        stored = await store.read("u", schema, encoder.codec, history=False, budget=0.05)
        assert stored.degraded == "profile_unavailable"
        took = time.perf_counter() - started
        await store.__aexit__(None, None, None)
        return took

    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert asyncio.run(scenario(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")) < 5


def test_callers_in_a_hurry_do_not_open_the_breaker(
    tmp_path: Path, encoder: Encoder, schema: Schema
) -> None:
    """Reads that were given no fair time fail alone; the next one is answered."""

    async def scenario(server: RedisProcess) -> None:
        async with store_of(server.url, Breaker(2, 60.0)) as store:
            server.hang()
            for _ in range(5):
                stored = await store.read("u", schema, encoder.codec, history=True, budget=0.0)
                assert stored.degraded == "history_unavailable"
            server.go_on()
            stored = await store.read("u", schema, encoder.codec, history=True, budget=9)
            assert stored.degraded is None

    with running_redis(tmp_path) as server:
        asyncio.run(scenario(server))


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_late_event_loop_is_not_the_store_s_fault(
    loop: Callable[[], asyncio.AbstractEventLoop],
    client: Any,
    redis_url: str,
    encoder: Encoder,
    schema: Schema,
) -> None:
    """An answer that came in time is used, though the timeout was over when the loop saw it."""
    client.set(profile_key("din", "u"), '{"gender":"F"}')

    def block() -> None:
        for _ in range(3):
            client.ping()  # Redis has answered what it was asked before
        time.sleep(2 * SHORT)

    async def scenario() -> None:
        async with store_of(redis_url, Breaker(1, 60.0), SHORT) as store:
            for passes in range(8):  # of the loop, before it is blocked
                reading = asyncio.ensure_future(
                    store.read("u", schema, encoder.codec, history=True, budget=9)
                )
                for _ in range(passes):
                    await asyncio.sleep(0)
                block()
                stored = await reading
                assert (stored.profile, stored.degraded) == ({"gender": "F"}, None)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(scenario())


def test_a_burst_of_readers_needs_no_more_connections_in_time(
    client: Any, redis_url: str, encoder: Encoder, schema: Schema
) -> None:
    """Who finds no idle connection shares a busy one and does not wait for a new one."""
    before = int(client.info("clients")["connected_clients"])

    async def scenario() -> None:
        async with store_of(redis_url) as store:
            reads = [
                store.read("u", schema, encoder.codec, history=True, budget=9) for _ in range(32)
            ]
            assert not any(each.degraded for each in await asyncio.gather(*reads))
            assert int(client.info("clients")["connected_clients"]) - before <= 2

    asyncio.run(scenario())


def test_an_open_breaker_asks_no_more(encoder: Encoder, schema: Schema) -> None:
    """After failures in a row the store is not asked; a read then costs nothing."""
    attempts = 0

    async def scenario() -> None:
        async def accept(reader: Any, writer: Any) -> None:
            nonlocal attempts
            attempts += 1
            writer.close()

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        store = store_of(url, Breaker(3, 60.0))
        for _ in range(10):
            stored = await store.read("u", schema, encoder.codec, history=True, budget=9)
            assert stored.degraded == "history_unavailable"
        await store.__aexit__(None, None, None)
        server.close()

    asyncio.run(scenario())
    assert attempts == 3


def test_a_read_that_is_given_up_does_not_mix_up_the_next(
    client: Any, redis_url: str, encoder: Encoder, schema: Schema
) -> None:
    """Cancelling reads half-way never gives a later reader another one's answer."""
    for user in ("a", "b"):
        client.set(profile_key("din", user), f'{{"gender":"{user}"}}')

    async def scenario() -> None:
        async with store_of(redis_url) as store:

            def ask(user: str) -> Awaitable[Stored]:
                return store.read(user, schema, encoder.codec, history=True, budget=9)

            for turn in range(40):
                given_up = asyncio.ensure_future(ask("a"))
                for _ in range(turn % 8):
                    await asyncio.sleep(0)
                given_up.cancel()
                assert (await ask("b")).profile == {"gender": "b"}

    asyncio.run(scenario())


def test_more_readers_than_connections_wait_their_turn(
    client: Any, redis_url: str, encoder: Encoder, schema: Schema
) -> None:
    """All get their own answer, over no more connections than allowed."""
    users = [str(n) for n in range(40)]
    for user in users:
        client.set(profile_key("din", user), f'{{"gender":"{user}"}}')

    def connections() -> int:
        return int(client.info("clients")["connected_clients"])

    async def scenario() -> None:
        before = connections()
        async with store_of(redis_url) as store:
            found = await asyncio.gather(
                *(store.read(u, schema, encoder.codec, history=True, budget=9) for u in users)
            )
            assert [each.profile["gender"] for each in found] == users
            assert not any(each.degraded for each in found)
            assert 1 <= connections() - before <= 4

    asyncio.run(scenario())


def test_connections_that_were_closed_while_idle_are_replaced(
    client: Any, redis_url: str, encoder: Encoder, schema: Schema
) -> None:
    """A Redis that dropped its clients, as one that was restarted, degrades no read."""
    client.set(profile_key("din", "u"), '{"gender":"F"}')

    async def scenario() -> None:
        async with store_of(redis_url) as store:

            def ask() -> Awaitable[Stored]:
                return store.read("u", schema, encoder.codec, history=True, budget=9)

            await asyncio.gather(*(ask() for _ in range(8)))
            client.client_kill_filter(_type="normal", skipme=True)
            for found in await asyncio.gather(*(ask() for _ in range(8))):
                assert found.degraded is None
                assert found.profile == {"gender": "F"}

    asyncio.run(scenario())


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def closed_breaker() -> tuple[Breaker, Clock]:
    clock = Clock()
    return Breaker(2, 1.0, clock), clock


def fail(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        assert breaker.allow()
        breaker.failed()


def test_a_success_resets_the_count_of_failures() -> None:
    """Only failures in a row open the breaker."""
    breaker, _ = closed_breaker()
    fail(breaker, 1)
    breaker.succeeded()
    fail(breaker, 1)
    assert breaker.allow()


@pytest.mark.parametrize(
    ("outcome", "allowed"),
    [(Breaker.succeeded, True), (Breaker.failed, False), (Breaker.left, True)],
)
def test_after_its_time_one_probe_decides(
    outcome: Callable[[Breaker], None], allowed: bool
) -> None:
    """An open breaker lets one caller through after its time; a cancelled one does not count."""
    breaker, clock = closed_breaker()
    fail(breaker, 2)
    assert not breaker.allow()
    clock.now = 1.0
    assert breaker.allow()
    assert not breaker.allow()
    outcome(breaker)
    assert breaker.allow() is allowed

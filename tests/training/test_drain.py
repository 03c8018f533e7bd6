"""Draining: what is in the streams of a real Redis is in the files once, whatever happens."""

from __future__ import annotations

import json
import multiprocessing
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest
import redis

from model.contract.log import Entry
from model.contract.store import PARTITIONS, log_key
from store.blocking import Clients
from store.url import StoreUrl
from tests.support import ROOT, RedisProcess, running_redis
from tests.training.entries import (
    EAGER,
    NOON,
    add,
    collect_until_killed,
    erasure,
    event,
    fields,
    folder_of_logs,
    gather,
    on_disk,
    score,
    waiting,
)
from training.collect import CollectError, Source
from training.collected import Collected, Writer, Written
from training.drain import Drain, Pace
from training.entries import Taken
from training.files import Files
from training.streams import GROUP, Streams

KILLS = 50


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    with running_redis(tmp_path_factory.mktemp("redis")) as found:
        yield found


@pytest.fixture
def client(server: RedisProcess) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url, protocol=2) as found:
        found.flushall()
        yield found


@pytest.fixture
def clients(server: RedisProcess) -> Iterator[Clients]:
    with Clients(StoreUrl.parse(server.url), 60) as found:
        yield found


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return folder_of_logs(tmp_path / "logs")


def once(server: RedisProcess, logs: Path, consumer: str = "c", pace: Pace = EAGER) -> None:
    """Collect what is there."""
    source = Source(server.url, "din", consumer)
    gather(source, logs, pace)


def until(true: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def pending(client: redis.Redis) -> int:
    keys = [log_key("din", each) for each in range(PARTITIONS)]
    return sum(client.xpending(key, GROUP)["pending"] for key in keys)


def items(rows: pl.DataFrame) -> list[str]:
    return sorted(rows["item_id"]) if len(rows) else []


def test_what_is_there_is_collected(
    server: RedisProcess, client: redis.Redis, logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All partitions are drained into the files, the streams are empty after, and it says so."""
    add(client, *(event(f"u{n}", f"i{n}") for n in range(300)), score("u1", "r"), erasure("u2"))
    once(server, logs)
    assert len(Collected(logs).events()) == 299
    assert len(Collected(logs).scores()) == 1
    assert waiting(client) == pending(client) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in (told[0], told[-1])] == ["started", "ended"]
    assert sum(line.get("events", 0) for line in told) == 299 + sum(
        line.get("removed", 0) for line in told
    )


def test_every_key_has_a_time_to_live_and_no_consumer_stays(
    server: RedisProcess, client: redis.Redis, logs: Path
) -> None:
    """Also a stream that was not there before, and one whose time another has set keeps it."""
    add(client, event("u"))
    client.expire(log_key("din", 5), 0)
    client.xadd(log_key("din", 5), {"k": "x"})
    client.expire(log_key("din", 5), 500)
    once(server, logs)
    keys = [log_key("din", each) for each in range(PARTITIONS)]
    assert sorted(client.keys()) == sorted(key.encode() for key in keys)
    assert all(client.ttl(key) > 500 for key in keys if key != log_key("din", 5))
    assert 0 < client.ttl(log_key("din", 5)) <= 500
    assert all(client.xinfo_consumers(key, GROUP) == [] for key in keys)


def test_a_stream_is_trimmed_only_after_the_file_is_there(
    server: RedisProcess, client: redis.Redis, logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When nothing can be written the entries stay, and the next collector has them."""
    add(client, event("u", "a"), event("v", "b"))
    monkeypatch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        once(server, logs)
    monkeypatch.undo()
    assert waiting(client) == 2
    once(server, logs, "another")
    assert items(on_disk(logs, "events")) == ["a", "b"]
    assert waiting(client) == pending(client) == 0


def test_what_was_written_but_not_said_to_be_done_is_not_written_again(
    server: RedisProcess, client: redis.Redis, logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collector died between the two; its own name, or another, brings the entries again."""
    for consumer in ("c", "another"):
        add(client, event("u", consumer))
        monkeypatch.setattr(Streams, "done", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            once(server, logs, "c")
        monkeypatch.undo()
        assert pending(client) == 1
        once(server, logs, consumer)
        assert pending(client) == waiting(client) == 0
    assert items(on_disk(logs, "events")) == ["another", "c"]


def test_what_another_collector_holds_is_left_to_it_for_a_while(
    server: RedisProcess, client: redis.Redis, clients: Clients, logs: Path
) -> None:
    """Only what was idle for long enough is taken over."""
    add(client, event("u"))
    other = Streams(clients, "din", "other")
    other.join()
    assert len(list(other.fresh())) == 1
    once(server, logs, pace=Pace(claim_after=3600))
    assert on_disk(logs, "events").is_empty()
    once(server, logs, pace=Pace(claim_after=0))
    assert len(on_disk(logs, "events")) == 1


def test_an_entry_that_was_erased_while_it_was_pending_is_let_go(
    server: RedisProcess, client: redis.Redis, clients: Clients, logs: Path
) -> None:
    """The service takes a user's entries from the stream; no one waits for them for ever."""
    add(client, event("u", "gone"), event("u", "kept"))
    for consumer in ("c", "other"):
        Streams(clients, "din", consumer, count=1).join()
        list(Streams(clients, "din", consumer, count=1).fresh())
    [key] = [key for key in client.scan_iter() if client.xlen(key)]
    client.xdel(key, client.xrange(key)[0][0])
    once(server, logs)
    assert items(on_disk(logs, "events")) == ["kept"]
    assert pending(client) == waiting(client) == 0


def test_more_than_fits_a_batch_is_collected(
    server: RedisProcess, client: redis.Redis, clients: Clients, logs: Path
) -> None:
    """Pending entries of several collectors and fresh ones, page by page."""
    add(client, *(event("u", f"i{n}") for n in range(150)))
    for consumer in ("c", "other"):
        streams = Streams(clients, "din", consumer, count=50)
        streams.join()
        assert sum(map(len, streams.fresh())) == 50
    stop, batches = threading.Event(), list[Written]()
    with Files(logs).alone():
        drain = Drain(
            streams=Streams(clients, "din", "c", count=7),
            writer=Writer(Files(logs), "s"),
            pace=Pace(rows=20, claim_after=0),
            stop=stop,
            tell=lambda *_, **__: None,
            written=batches.append,
        )
        drain.once()
    assert items(on_disk(logs, "events")) == sorted(f"i{n}" for n in range(150))
    sizes = [len(each.new["events"]) for each in batches]
    assert max(sizes) < 20 + 7
    assert waiting(client) == pending(client) == 0


def test_large_entries_make_smaller_batches(
    client: redis.Redis, clients: Clients, logs: Path
) -> None:
    """A batch is full by its bytes too; once their size is known as few are asked for as fit."""
    items = [f"i{n}" for n in range(2000)]
    add(client, *(score("u", f"r{n}", items) for n in range(30)))
    add(client, event("u"))
    size = Taken(0, "1-0", fields(score("u", "r10", items))).size
    streams, batches = Streams(clients, "din", "c", room=8 * 3 * size), list[Written]()
    streams.join()
    streams.count = 4
    assert sum(map(len, streams.fresh())) == 4
    streams.count = 100
    assert sum(map(len, streams.fresh())) == 3
    with Files(logs).alone():
        drain = Drain(
            streams=streams,
            writer=Writer(Files(logs), "s"),
            pace=Pace(bytes=5 * size, claim_after=0),
            stop=threading.Event(),
            tell=lambda *_, **__: None,
            written=batches.append,
        )
        drain.once()
    assert len(on_disk(logs, "scores")) == 30
    assert len(on_disk(logs, "events")) == 1
    assert max(len(each.new["scores"]) for each in batches) == 6
    assert waiting(client) == pending(client) == 0


def test_what_cant_be_read_is_named_and_blocks_nothing(
    server: RedisProcess, client: redis.Redis, logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said which entry it was; user and item ids are not said."""
    add(client, event("hidden-user", "a"))
    name = client.xadd(log_key("din", 9), {"k": "event", "u": "hidden-user", "d": "nonsense"})
    once(server, logs)
    output = capsys.readouterr().out
    [line] = [json.loads(each) for each in output.splitlines() if '"unreadable",' in each]
    assert line["partition"] == 9
    assert line["entry"].lstrip("0") == f"{name.decode().split('-')[0]}-0000000000"
    assert "hidden-user" not in output
    assert waiting(client) == 0
    assert len(on_disk(logs, "unreadable")) == len(on_disk(logs, "events")) == 1


def test_a_redis_that_is_away_is_waited_for(tmp_path: Path, logs: Path) -> None:
    """From before the start, and when it comes back empty, with neither group nor stream."""
    stop, told, turned = threading.Event(), [], threading.Event()
    server = RedisProcess(tmp_path)
    clients = Clients(StoreUrl.parse(server.url), 1)

    def tell(name: str, **_: object) -> None:
        told.append(name)

    def work() -> None:
        with Files(logs).alone(), clients:
            Drain(
                streams=Streams(clients, "din", "c"),
                writer=Writer(Files(logs), "s"),
                pace=EAGER,
                stop=stop,
                tell=tell,
                turn=turned.set,
            ).run()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for life in range(2):
            until(lambda: "redis_away" in told)
            server.start()
            until(lambda at=server: redis.Redis.from_url(at.url).ping())
            with redis.Redis.from_url(server.url, protocol=2) as own:
                add(own, event("u", f"life {life}"))
                until(
                    lambda at=life, own=own: (
                        waiting(own) == 0 and on_disk(logs, "events").height > at
                    )
                )
            told.clear()
            if not life:
                server.kill()
    finally:
        stop.set()
        thread.join()
        server.kill()
    assert items(on_disk(logs, "events")) == ["life 0", "life 1"]


def test_one_collection_of_a_redis_that_is_away_fails(tmp_path: Path, logs: Path) -> None:
    """A scheduler is told; nobody waits."""
    with pytest.raises(CollectError, match="Redis"):
        gather(Source("redis://127.0.0.1:1/0", "din", "c"), logs, EAGER)


def test_without_a_schema_nothing_is_collected(server: RedisProcess, tmp_path: Path) -> None:
    """What a ts is must be known."""
    with pytest.raises(CollectError, match=r"schema\.toml"):
        once(server, tmp_path)


@pytest.mark.parametrize("wrong", [("--redis-url", "nonsense"), ("--metrics-port", "99999")])
def test_an_option_that_can_not_be_is_a_wrong_use(
    server: RedisProcess, logs: Path, wrong: tuple[str, str]
) -> None:
    """Exit code 2, by its name, before anything is read."""
    ended = subprocess.run(
        command(server, logs, "--once", *wrong), check=False, cwd=ROOT, capture_output=True
    )
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert wrong[0].encode() in ended.stderr


def command(server: RedisProcess, logs: Path, *options: str) -> list[str]:
    where = ["--logs", str(logs), "--redis-url", server.url]
    return [sys.executable, "-m", "training", "collect", *where, *options]


def test_the_command_ends_well_when_it_is_told_to(
    server: RedisProcess, client: redis.Redis, logs: Path
) -> None:
    """On SIGTERM what was read is written and done, and the status is 0; torch was never loaded."""
    started = time.monotonic()
    code = f"import sys; sys.argv = {command(server, logs, '--every', '3600')[2:]!r}\n" + (
        "from training.__main__ import app\n"
        "try: app()\n"
        "finally: assert 'torch' not in sys.modules\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert b'"started"' in process.stdout.readline()
        add(client, event("u", "a"))
        until(lambda: bool(client.exists(log_key("din", 0))) and pending(client) == 1)
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read()
        assert process.wait(120) == 0
    assert b'"written"' in rest
    assert b'"ended"' in rest
    assert items(on_disk(logs, "events")) == ["a"]
    assert waiting(client) == pending(client) == 0
    assert time.monotonic() - started < 3600


def test_a_second_collector_waits_for_the_first(
    server: RedisProcess, client: redis.Redis, logs: Path
) -> None:
    """Of one folder; with --once it is refused instead."""

    def start(*options: str) -> subprocess.Popen[bytes]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command(server, logs, *options), cwd=ROOT, **pipes)

    first = start("--every", "0.05")
    assert b"started" in first.stdout.readline()
    refused = start("--once")
    _, complaint = refused.communicate(timeout=300)
    assert refused.returncode == 1
    assert b"another process" in complaint
    second = start("--every", "0.05")
    assert b"waiting_for_another_collector" in second.stdout.readline()
    first.kill()
    first.communicate()
    assert b"started" in second.stdout.readline()
    add(client, event("u"))
    until(lambda: waiting(client) == 0)
    second.terminate()
    second.communicate()
    assert second.returncode == 0
    assert len(on_disk(logs, "events")) == 1


def test_fifty_kills_lose_nothing_and_double_nothing(
    server: RedisProcess, client: redis.Redis, logs: Path
) -> None:
    """Collectors are killed at steps drawn with a seed while entries come in; in the end each is
    in the files once, what was erased is not, and the streams are empty."""
    drawn, again = random.Random(4), random.Random(5)
    server_of_forks = multiprocessing.get_context("forkserver")
    server_of_forks.set_forkserver_preload(["tests.training.entries"])
    over, added, kills = threading.Event(), list[Entry](), 0

    def feed() -> None:
        """Some entries all the time, but no more than 40 for each kill, however slow they are."""
        with redis.Redis.from_url(server.url, protocol=2) as own:
            while not over.wait(0.005):
                n = len(added)
                if n >= 40 * (kills + 1):
                    continue
                some: list[Entry] = [
                    event(f"u{each % 97}", f"i{each}", NOON + each % 3 * 40_000)
                    for each in range(n, n + 5)
                ]
                some += [score(f"u{n % 97}", f"r{n}")]
                add(own, *some, *again.sample(some, 2))  # two are sent again
                added.extend(some)

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        for kills in range(KILLS):
            if kills == KILLS // 2:
                gone = "u5"
                add(client, event(gone, "to be erased"), erasure(gone, 2 * NOON))
                add(client, event(gone, "back", received=(2 * NOON + 1) * 1000))
            where = (server.url, logs, f"c{kills % 3}", drawn.randrange(1, 150))
            child = server_of_forks.Process(target=collect_until_killed, args=where)
            child.start()
            child.join(60)
            assert child.exitcode == -signal.SIGKILL
    finally:
        over.set()
        feeder.join()
    once(server, logs, "last")
    assert waiting(client) == pending(client) == 0
    kept = {each.key for each in added if each.user_id != "u5"}
    files = [on_disk(logs, kind) for kind in ("events", "scores")]
    keys = [row for rows in files for row in rows.filter(pl.col("user_id") != "u5")["key"]]
    assert len(keys) == len(set(keys))
    assert set(keys) == kept
    assert len(keys) > KILLS
    assert items(files[0].filter(pl.col("user_id") == "u5")) == ["back"]

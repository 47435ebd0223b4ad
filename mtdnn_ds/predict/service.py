"""The HTTP service: POST /predict, GET /health, GET /tasks and a page at /. Answers no text (batching.py).

422  not the JSON that is asked for, a text that cannot be read, an unknown task, or one that cannot read
     such texts
413  more texts than max_texts, a text longer than max_chars, a body longer than both allow
503  max_queue texts wait already (with Retry-After), or the service is closing
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Any

from mtdnn_ds import __version__
from mtdnn_ds.config.errors import TrainingError, UserError
from mtdnn_ds.config.extras import require_extra
from mtdnn_ds.predict.batching import Batcher, Closed, QueueFull
from mtdnn_ds.predict.inputs import asked_tasks, needs_of, rows_of
from mtdnn_ds.predict.model import MultiTaskModel
from mtdnn_ds.predict.output import rounded
from mtdnn_ds.runs.number_format import format_name

try:
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.responses import HTMLResponse, JSONResponse, Response
except ImportError:
    require_extra("serve", "serve")
    raise

_BYTES_BESIDE_TEXTS = 65_536  # of a body: names, brackets, task names
_BYTES_PER_CHAR = 12  # of JSON that writes every character as an escaped surrogate pair


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one request may hold, and how many texts may wait."""

    max_texts: int = 256
    max_chars: int = 20_000
    max_queue: int = 4096
    max_wait_seconds: float = 0.005
    max_batch_tokens: int | None = None

    @property
    def max_bytes(self) -> int:
        return self.max_texts * self.max_chars * _BYTES_PER_CHAR + _BYTES_BESIDE_TEXTS


class _Refusal(Exception):
    """An answer with a status that is not 200. `headers`: names with _ in place of -."""

    def __init__(self, status: int, problem: str, **headers: str) -> None:
        self.status = status
        self.problem = problem
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def make_app(model: MultiTaskModel, limits: Limits, name: str = "") -> FastAPI:
    """The service of a model, whose thread lives as long as the app.

    `name`: of the model, as the page shows it.
    """
    batcher: Batcher | None = None

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        nonlocal batcher
        batcher = Batcher(
            model,
            max_wait_seconds=limits.max_wait_seconds,
            max_texts=limits.max_texts,
            max_queue=limits.max_queue,
            max_tokens=limits.max_batch_tokens,
        )
        try:
            yield
        finally:
            await asyncio.to_thread(batcher.close)

    app = FastAPI(
        title="mtdnn_ds",
        version=__version__,
        lifespan=running,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    page = resources.files("mtdnn_ds.predict").joinpath("page.html").read_text(encoding="utf-8")
    tasks = describe_tasks(model)
    model.speaks = False  # its rows are any caller's

    @app.exception_handler(_Refusal)
    async def refuse(request: Request, refused: _Refusal) -> Response:
        return JSONResponse({"error": refused.problem}, status_code=refused.status, headers=refused.headers)

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        body = await _body(request, limits.max_bytes)
        rows, asked = _read(body, model, limits)
        assert batcher is not None
        try:
            found = await asyncio.wrap_future(batcher.submit(rows, asked))
        except QueueFull:
            raise _Refusal(
                503, f"{limits.max_queue:,} texts wait already; come again", Retry_After="1"
            ) from None
        except Closed:
            raise _Refusal(503, "the service is closing", Retry_After="5") from None
        except TrainingError as error:
            raise _Refusal(500, str(error)) from error
        except UserError as error:
            raise _Refusal(422, str(error)) from error
        return JSONResponse({"answers": rounded(found.answers), "truncated": found.truncated})

    @app.get("/health")
    async def health() -> dict[str, Any]:
        assert batcher is not None
        return {
            "status": "ok",
            "model": name,
            "version": __version__,
            "device": str(model.device),
            "dtype": format_name(model.loaded.dtype),
            "waiting": batcher.num_waiting,
            "requests": batcher.num_requests,
            "passes": batcher.num_passes,
        }

    @app.get("/tasks")
    async def list_tasks() -> dict[str, Any]:
        return {"model": name, "max_texts": limits.max_texts, "max_chars": limits.max_chars, "tasks": tasks}

    @app.get("/")
    async def show() -> HTMLResponse:
        return HTMLResponse(page)

    return app


def describe_tasks(model: MultiTaskModel) -> list[dict[str, Any]]:
    """Name, kind, labels and input of every task that can be answered."""
    return [
        {
            "name": spec.name,
            "kind": spec.kind,
            "labels": list(spec.labels),
            "reads": needs_of(reads),
            "input": reads.kind,
        }
        for spec, reads in zip(model.specs, model.inputs, strict=True)
        if reads is not None
    ]


async def _body(request: Request, max_bytes: int) -> bytes:
    """The body, read no further than it may be long."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise _Refusal(413, f"the body is longer than {max_bytes:,} bytes; send fewer or shorter texts")
    return body


def _read(body: bytes, model: MultiTaskModel, limits: Limits) -> tuple[list[Any], tuple[int, ...] | None]:
    """The rows and the tasks that a body asks for."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _Refusal(422, f"the body is not valid JSON: {error}") from error

    shape = 'send {"texts": [...], "tasks": ["name", ...] or "all"}'
    if not isinstance(asked, dict) or not isinstance(asked.get("texts"), list):
        raise _Refusal(422, f"the body has no list 'texts'; {shape}")
    unknown = sorted(set(asked) - {"texts", "tasks"})
    if unknown:
        raise _Refusal(422, f"unknown key '{unknown[0]}'; {shape}")

    names, texts = asked.get("tasks", "all"), asked["texts"]
    if not isinstance(names, str) and not _are_texts(names):
        raise _Refusal(422, f"'tasks' is neither a text nor a list of texts; {shape}")
    if not texts:
        raise _Refusal(422, f"'texts' is empty; {shape}")
    if len(texts) > limits.max_texts:
        raise _Refusal(413, f"{len(texts):,} texts; one request holds at most {limits.max_texts:,}")

    for place, text in enumerate(texts, 1):
        try:
            num_chars = _num_chars(text)
        except RecursionError:
            raise _Refusal(422, f"the body is nested too deeply; {shape}") from None
        if num_chars > limits.max_chars:
            raise _Refusal(413, f"text {place} has more than {limits.max_chars:,} characters")

    try:
        return rows_of(texts), asked_tasks(names, model.specs, "tasks")
    except UserError as error:
        raise _Refusal(422, str(error)) from error


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _num_chars(value: Any) -> int:
    """Characters of a text, or of all texts of a pair or a row."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return sum(map(_num_chars, value))
    return 0


def serve(app: FastAPI, *, host: str, port: int, ready: Callable[[], None]) -> None:
    """Listen until SIGTERM or SIGINT; requests that are being answered are answered.

    `ready` is called once it listens.
    """

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:
                ready()

    # uvicorn stops cleanly, and then raises the signal again: whoever asked it to stop got what they wanted.
    before = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, lambda number, frame: None)

    config = uvicorn.Config(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=30)
    try:
        Server(config).run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

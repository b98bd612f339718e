"""A whole service in one process: real app, server and files; only vLLM is doubled."""

import asyncio
import dataclasses
import hashlib
import json
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import orjson
from starlette.types import ASGIApp

from api.engine.delta import Delta
from api.engine.lifecycle import State
from api.engine.sampling import NO_ENDS
from api.engine.served import PROBE
from api.engine.template_form import Ends
from api.engine.thinking import Thinking, Thinks
from api.http.idle import IdleConnections
from api.http.server import AdminServer, Server, listen
from api.service import Service
from api.settings import Settings
from tests.support import PATIENCE_S

URL = "/v1/chat/completions"
MODEL = "tiny-docs"
KEY = "test-key-0123456789abcdef"


def ask(**fields: Any) -> dict[str, Any]:
    """A good request, with `fields` in place of or in addition to its own."""
    return {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]} | fields


def example_manifest(directory: Path) -> dict[str, Any]:
    """A manifest of the files that are in `directory`, as contract 1 wants it."""
    interval = {"value": 1.0, "low": 0.9, "high": 1.1}
    agreement = {"dtype": "float32", "max_logit_difference": 0.0, "top1_agreement": 1.0}
    sha256 = "0" * 64
    return {
        "schema_version": 1,
        "id": directory.name,
        "name": MODEL,
        "description": "Writes reference cards.",
        "examples": ["Hi"],
        "created_at": "2026-11-24T10:00:00Z",
        "base_model": {"id": "b", "revision": "r", "licence": "l", "weights_sha256": sha256},
        "adapter": {"rank": 8, "alpha": 16, "target_modules": ["q_proj"], "learning_rate": 0.001},
        "training": {
            "steps": 1,
            "best_step": 1,
            "seed": 7,
            "engine": "plain",
            "dtype": "float32",
            "quantization": "none",
            "train_seconds": 1.0,
            "tokens_per_second": None,
            "validation_loss": interval,
        },
        "data": {"source": "stdlib-docs", "fingerprint": sha256, "rows": {"train": 1}},
        "config_hash": sha256,
        "seed": 0,
        "packages": {"torch": "2.13.0"},
        "hardware": {"processor": "p", "cores": 2, "memory_gib": 24, "accelerator": None},
        "selection": {
            "metric": "nll",
            "winner": "r8",
            "separable": True,
            "reason": "smallest",
            "settings": [{}],
        },
        "merge_check": {"positions": 1, "fp32": agreement, "shipped": agreement, "passed": True},
        "evaluation": {
            "passed": True,
            "metrics": [
                {"name": "nll", "split": "test", "unit": "nats", "n": 1}
                | dict.fromkeys(("base", "tuned", "difference"), interval)
            ],
            "gates": [{"name": "nll", "passed": True, "detail": "better"}],
        },
        "files": {
            path.name: {
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "bytes": path.stat().st_size,
            }
            for path in directory.iterdir()
            if path.name != "manifest.json"
        },
    }


def another_artifact(artifacts: Path, id: str, *, whole: bool = True) -> None:
    """Make a copy of the artifact under another id and let `current` name it."""
    models = artifacts / "models"
    copied = models / id
    shutil.copytree(models / "tiny-r8", copied)
    manifest = example_manifest(copied)
    (copied / "manifest.json").write_text(json.dumps(manifest))
    if not whole:
        (copied / "README.md").write_text("# Other\n")
    link = models / "current.new"
    link.symlink_to(id)
    link.replace(models / "current")


@dataclass
class FakeEngine:
    """Says `deltas`; can stop to wait before one of them, or fail there."""

    deltas: list[Delta] = field(
        default_factory=lambda: [
            Delta("Hello", 1, None),
            Delta(" world", 1, None),
            Delta("", 1, "stop"),
        ]
    )
    max_model_len: int = 256
    vocab_size: int = 259
    models: Sequence[str] = (MODEL,)
    is_dead: bool = False
    hold_before: int | None = None
    fail_before: tuple[int, Exception] | None = None
    start_error: Exception | None = None
    starts: int = 0
    aborted: int = 0
    stopped: bool = False
    calls: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.release = asyncio.Event()

    def import_libraries(self) -> None: ...

    def start(self, thinking: Thinking | None = None) -> None:
        self.starts += 1
        if self.start_error is not None:
            raise self.start_error
        self.is_dead = False

    async def generate(
        self,
        request_id: str,
        prompt_ids: list[int],
        sampling: Any,
        max_tokens: int,
        *,
        stream: bool,
        model: str = "",
        logprobs: int | None = None,
        cache_salt: str | None = None,
        json_schema: str | None = None,
        rules: str | None = None,
        echo: bool = False,
        thinks: Thinks | None = None,
        ends: Ends = NO_ENDS,
        show_controls: bool = False,
    ) -> AsyncIterator[Delta]:
        if request_id == PROBE:
            yield Delta("x", 1, "length")
            return
        self.calls.append(
            {
                "request_id": request_id,
                "prompt_ids": prompt_ids,
                "sampling": sampling,
                "max_tokens": max_tokens,
                "stream": stream,
                "model": model,
                "logprobs": logprobs,
                "cache_salt": cache_salt,
                "json_schema": json_schema,
                "rules": rules,
                "echo": echo,
                "thinks": thinks,
                "ends": ends,
                "show_controls": show_controls,
            }
        )
        try:
            for position, delta in enumerate(self.deltas):
                if position == self.hold_before:
                    await self.release.wait()
                if self.fail_before is not None and position == self.fail_before[0]:
                    raise self.fail_before[1]
                yield dataclasses.replace(delta)  # the service changes them
        except (asyncio.CancelledError, GeneratorExit):
            self.aborted += 1
            raise

    def shutdown(self) -> None:
        self.stopped = True


@dataclass
class House:
    """A service with what a test wants to look at."""

    app: ASGIApp
    service: Service
    engine: FakeEngine
    settings: Settings

    def client(self, **options: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app, raise_app_exceptions=False),
            base_url="http://test",
            **options,
        )

    async def load(self) -> None:
        self.service.lifecycle.start()
        await eventually(lambda: self.service.lifecycle.state is not State.STARTING)

    def server(self, admin: AdminServer | None = None) -> Server:
        idle = IdleConnections(self.settings.keep_alive_s, self.settings.max_idle_connections)
        return Server(self.app, self.service.lifecycle, idle, admin)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """The address of the real server around this app, on a free port of the loopback."""
        server = self.server()
        listener = listen("127.0.0.1", 0)
        running = asyncio.create_task(server.serve([listener]))
        try:
            await eventually(lambda: self.service.lifecycle.state is State.READY)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await running


async def eventually(holds: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():
            await asyncio.sleep(0.01)


async def post(house: House, **options: Any) -> httpx.Response:
    await house.load()
    async with house.client() as client:
        response: httpx.Response = await client.post(URL, **options)
        return response


def events(answer: httpx.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def assert_openai_error(answer: httpx.Response, status: int, code: str | None) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    return error


def streamed_request(version: str = "1.1") -> bytes:
    body = orjson.dumps(ask(stream=True))
    head = f"POST {URL} HTTP/{version}\r\nhost: x\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body

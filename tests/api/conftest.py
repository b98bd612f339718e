"""A whole service in one process: real tokenizer, app, server and files; only vLLM is doubled."""

import asyncio
import hashlib
import json
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from api.app import create_app
from api.engine.artifact import read_artifact
from api.engine.comparison import read_comparison_models
from api.engine.engine import Delta
from api.engine.lifecycle import State
from api.engine.served import PROBE
from api.http.server import Server, listen
from api.http.tracing import ENDPOINTS
from api.service import Service, build_service
from api.settings import Settings, reference

MODEL = "tiny-docs"
LOAD_TIMEOUT_S = 60.0  # the first load imports transformers, on a busy machine for many seconds
KEY = "test-key-0123456789abcdef"
CHATML = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' and loop.first %}"
    "{{ raise_exception('an assistant cannot begin') }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens, and three control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tiny = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tiny.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tiny.decoder = decoders.ByteLevel()
    tiny.add_special_tokens(["<|bos|>", "<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tiny, bos_token="<|bos|>", eos_token="<|im_end|>", chat_template=CHATML
    )


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


@pytest.fixture
def artifacts(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """An artifacts directory with one good artifact, served by `current`."""
    directory = tmp_path / "artifacts" / "models" / "tiny-r8"
    directory.mkdir(parents=True)
    tokenizer.save_pretrained(directory)
    (directory / "config.json").write_text(
        '{"model_type": "llama", "max_position_embeddings": 256, "vocab_size": 259}'
    )
    (directory / "README.md").write_text("# Tiny\n")
    (directory / "manifest.json").write_text(json.dumps(example_manifest(directory)))
    (directory.parent / "current").symlink_to(directory.name)
    return tmp_path / "artifacts"


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

    def start(self) -> None:
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
    ) -> AsyncIterator[Delta]:
        if request_id == PROBE:
            yield Delta("x", 1, "length")
            return
        self.calls.append(
            {
                "request_id": request_id,
                "prompt_ids": prompt_ids,
                "max_tokens": max_tokens,
                "stream": stream,
                "model": model,
                "logprobs": logprobs,
                "cache_salt": cache_salt,
                "json_schema": json_schema,
            }
        )
        try:
            for position, delta in enumerate(self.deltas):
                if position == self.hold_before:
                    await self.release.wait()
                if self.fail_before is not None and position == self.fail_before[0]:
                    raise self.fail_before[1]
                yield delta
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
        await eventually(lambda: self.service.lifecycle.state is not State.STARTING, LOAD_TIMEOUT_S)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """The address of the real server around this app, on a free port of the loopback."""
        server = Server(self.app, self.service.lifecycle)
        listener = listen("127.0.0.1", 0)
        running = asyncio.create_task(server.serve([listener]))
        try:
            await eventually(lambda: self.service.lifecycle.state is State.READY, LOAD_TIMEOUT_S)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await running


async def eventually(holds: Callable[[], bool], timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():
            await asyncio.sleep(0.01)


@pytest.fixture
def make_house(artifacts: Path) -> Callable[..., House]:
    def make(engine: FakeEngine | None = None, **options: Any) -> House:
        engine = engine or FakeEngine()
        settings = Settings(artifacts_dir=artifacts, **options)
        comparison = read_comparison_models(settings.base_dir, settings.adapters)
        service = build_service(settings, read_artifact(artifacts), lambda _: engine, comparison)  # type: ignore
        return House(create_app(service, settings.cors_origins), service, engine, settings)

    return make


@pytest.fixture
def swappable(artifacts: Path) -> Callable[..., House]:
    """A service that starts `first`, then `others` in turn."""

    def make(first: FakeEngine, *others: FakeEngine) -> House:
        engines: Any = iter([first, *others])
        settings = Settings(artifacts_dir=artifacts)
        service = build_service(settings, read_artifact(artifacts), lambda _: next(engines))
        return House(create_app(service), service, first, settings)

    return make


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


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in (*ENDPOINTS, *(name for name, _, _ in reference())):
        monkeypatch.delenv(name, raising=False)
    yield


def ask(**fields: Any) -> dict[str, Any]:
    """A good request, with `fields` instead of or beside its own."""
    return {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]} | fields

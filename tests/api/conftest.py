"""Fixtures: a real tokenizer, an artifact, and services over them that run in this process."""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Connection
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from api.app import create_app
from api.engine.artifact import read_artifact
from api.engine.comparison import read_comparison_models
from api.ledger import redis as redis_ledger
from api.ledger import redis_link
from api.ledger.redis import RedisLedger
from api.service import build_service
from api.settings import Settings, reference
from api.telemetry.tracing import ENDPOINTS
from bench.redis_server import RedisServer, redis_server
from tests.support.api import FakeEngine, House, example_manifest
from tests.support.ledgers import API_KEY, Clock
from tests.support.replicas import Counted
from tests.support.thinking import deltas
from tests.support.thinking_house import ANSWER, Serve

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


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in (*ENDPOINTS, *(name for name, _, _ in reference())):
        monkeypatch.delenv(name, raising=False)
    yield


@pytest.fixture
def redis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisServer]:
    """A real Redis, and replicas whose beats, leases and timeouts are short."""
    for name, seconds in (("BEAT_S", 0.05), ("LEASE_S", 0.5), ("GRACE_S", 0.2)):
        monkeypatch.setattr(redis_ledger, name, seconds)
    monkeypatch.setattr(redis_link, "TIMEOUT_S", 0.6)
    with redis_server(tmp_path) as server:
        yield server


@pytest.fixture
async def counted(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Counted]:
    """A replica without background work, which counts what it sends to Redis."""
    sent: list[list[str]] = []
    pack = Connection.pack_command

    def packed(self: Connection, *command: Any) -> Any:
        sent.append([str(part) for part in command])
        return pack(self, *command)

    clock = Clock()
    ledger = RedisLedger(redis.url, API_KEY, lambda: "a", clock.now, clock.today)
    await ledger.beat()
    clock.seconds += redis_ledger.GRACE_S
    await ledger.beat()
    monkeypatch.setattr(Connection, "pack_command", packed)
    yield Counted(ledger, clock, sent)
    await ledger.close()


@pytest.fixture
def serve(artifacts: Path, make_house: Callable[..., House]) -> Serve:
    """Return a function that serves a model of this template, which answers in pieces of this length."""

    def make(template: str, answer: str = ANSWER, size: int = 1, reason: str = "stop") -> House:
        directory = (artifacts / "models" / "current").resolve()
        (directory / "chat_template.jinja").write_text(template)
        (directory / "manifest.json").write_text(json.dumps(example_manifest(directory)))
        tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(directory)
        pieces = [answer[start : start + size] for start in range(0, len(answer), size)]
        return make_house(FakeEngine([*deltas(tokenizer, pieces, reason)], max_model_len=4096))

    return make

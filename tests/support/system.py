"""`make up` and the API as the system tests start, ask and watch them."""

import asyncio
import json
import os
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

from bench.load import Answer, Service, ask, cmdline, descendants, free_port
from tests.support import PATIENCE_S, ROOT

PROFILE = ROOT / "tests" / "system" / "profile.yaml"
SCREENSHOTS = ROOT / ".venv" / "reports"
KEY = "a-key-for-the-system-tests"
BEARER = {"authorization": f"Bearer {KEY}"}
# The model is sure of its answer (1.2 nats at the least for 6 tokens), so rounding in another batch keeps it.
CERTAIN = "What is the capital of France?"
READY = re.compile(r"^Ready: ", re.MULTILINE)


@dataclass
class Up:
    """A running `make up`, its addresses and what it has printed."""

    process: subprocess.Popen[bytes]
    log: Path
    artifacts: Path
    api_url: str
    page_url: str
    ready_after_s: float = 0.0

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_until_ready(self, timeout_s: float) -> None:
        begun = time.monotonic()
        while not READY.search(self.output):
            assert self.process.poll() is None, f"make up ended:\n{self.output[-3000:]}"
            assert time.monotonic() - begun < timeout_s, f"not ready:\n{self.output[-3000:]}"
            time.sleep(0.2)
        self.ready_after_s = time.monotonic() - begun

    def stop(self) -> None:
        """Send SIGTERM, as a supervisor does, and wait until `make up` is gone."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(PATIENCE_S)


def start(folder: Path, artifacts: Path, **settings: str) -> Up:
    """`make up` with ports of its own and `settings` as further environment variables."""
    api_port, page_port = free_port(), free_port()
    environment = {
        **os.environ,
        "PROFILE": str(PROFILE),
        "ARTIFACTS_DIR": str(artifacts),
        "API_PORT": str(api_port),
        "FRONTEND_PORT": str(page_port),
        **settings,
    }
    log = folder / "up.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["make", "up"], cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    return Up(process, log, artifacts, f"http://127.0.0.1:{api_port}", f"http://127.0.0.1:{page_port}")


def engine_of(up: Up) -> list[int]:
    """Return vLLM's processes below `make up`."""
    return [pid for pid in descendants(up.process.pid) if cmdline(pid).startswith(b"VLLM::")]


def metric(up: Up, name: str) -> float:
    for line in get(f"{up.api_url}/metrics")[1].splitlines():
        if line.startswith(f"{name} "):
            return float(line.split()[-1])
    raise AssertionError(f"no metric {name}")


def wait_until(happened: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.05)


def get(url: str) -> tuple[int, str]:
    with urllib.request.urlopen(url, timeout=10) as response:
        return response.status, response.read().decode()


def chat(service: Service, **fields: Any) -> bytes:
    """A good request, with `fields` in place of or in addition to its own."""
    messages = [{"role": "user", "content": "Name a color."}]
    good = {"model": service.model, "messages": messages, "temperature": 0, "max_tokens": 4}
    return json.dumps(good | fields).encode()


def post(service: Service, **fields: Any) -> Answer:
    asked = ask(service.port, chat(service, **fields), BEARER)
    return asyncio.run(asyncio.wait_for(asked, PATIENCE_S))


def manifest_of(artifacts: Path) -> Any:
    return json.loads((artifacts / "models" / "current" / "manifest.json").read_text())


def client(up: Up, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{up.api_url}/v1", api_key=key, max_retries=0, timeout=2 * PATIENCE_S)


@contextmanager
def frozen(pids: list[int]) -> Iterator[None]:
    """Stop these processes until the block ends: whatever they work at is not finished within it."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

"""`make up` as a person runs it: real weights, real training, real vLLM, real page."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from bench.load import Answer, Service, ask
from browsing import CHROMIUM, CHROMIUM_FLAGS, DESKTOP, Visit
from browsing import ROOT as ROOT
from browsing import free_port as free_port

PROFILE = ROOT / "tests" / "system" / "profile.yaml"
SCREENSHOTS = ROOT / ".venv" / "reports"
KEY = "a-key-for-the-system-tests"
BEARER = {"authorization": f"Bearer {KEY}"}
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

    def stop(self) -> float:
        """SIGTERM as a supervisor sends it; seconds until `make up` is gone."""
        begun = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(30)
        return time.monotonic() - begun


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


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("artifacts")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def first_up(tmp_path_factory: pytest.TempPathFactory, artifacts: Path) -> Iterator[Up]:
    """The first start, which trains."""
    up = start(tmp_path_factory.mktemp("first"), artifacts)
    try:
        up.wait_until_ready(timeout_s=900)
        yield up
    finally:
        up.stop()


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, first_up: Up) -> Iterator[Service]:
    """A second API over the same model, which may be ill-treated: eight at a time, and it asks for KEY."""
    folder = tmp_path_factory.mktemp("service")
    artifacts = folder / "artifacts"
    artifacts.mkdir()
    (artifacts / "models").symlink_to(first_up.artifacts / "models")
    settings = {"API_KEY": KEY, "API_MAX_NUM_SEQS": "8", "API_USAGE_FILE": str(folder / "usage.db")}
    service = Service(artifacts, folder / "api.log", settings)
    try:
        service.start()
        yield service
    finally:
        service.stop()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    context = browser.new_context(viewport=DESKTOP, accept_downloads=True)
    visit = Visit(context.new_page())
    yield visit
    context.close()
    assert visit.faults == [], "the page calls nobody but its own server, and no script fails"


def metric(up: Up, name: str) -> float:
    for line in get(f"{up.api_url}/metrics")[1].splitlines():
        if line.startswith(f"{name} "):
            return float(line.split()[-1])
    raise AssertionError(f"no metric {name}")


def wait_until(happened: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.05)


def get(url: str) -> tuple[int, str]:
    with urllib.request.urlopen(url, timeout=10) as response:
        return response.status, response.read().decode()


def chat(service: Service, **fields: Any) -> bytes:
    """A good request, with `fields` instead of or beside its own."""
    messages = [{"role": "user", "content": "Name a color."}]
    good = {"model": service.model, "messages": messages, "temperature": 0, "max_tokens": 4}
    return json.dumps(good | fields).encode()


def post(service: Service, **fields: Any) -> Answer:
    return asyncio.run(ask(service.port, chat(service, **fields), BEARER))


@pytest.fixture
def unharmed(service: Service) -> Iterator[None]:
    """Afterwards it is ready, nothing runs in it, and it answers."""
    yield
    ready = service.is_ready()
    if not ready:  # a restart must not fail the tests that follow
        wait_until(service.is_ready, 120)
    assert ready
    deadline = time.monotonic() + 10
    while service.metric("finechat_requests_in_progress", BEARER):
        assert time.monotonic() < deadline, "something still runs"
        time.sleep(0.1)
    assert service.metric("finechat_active_streams", BEARER) == 0
    assert post(service).status == 200

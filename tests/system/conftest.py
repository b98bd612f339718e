"""`make up` as a person runs it: real weights, real training, real vLLM, real page."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from bench.load import Service
from tests.support.browsing import CHROMIUM, CHROMIUM_FLAGS, DESKTOP, Visit
from tests.support.system import BEARER, KEY, SCREENSHOTS, Up, post, start, wait_until


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


@pytest.fixture
def unharmed(service: Service) -> Iterator[None]:
    """Afterwards it is ready, nothing runs in it, and it answers."""
    yield
    ready = service.is_ready()
    if not ready:  # a restart must not fail the tests that follow
        wait_until(service.is_ready, 120)
    assert ready
    wait_until(lambda: not service.metric("finechat_requests_in_progress", BEARER))
    assert service.metric("finechat_active_streams", BEARER) == 0
    assert post(service).status == 200

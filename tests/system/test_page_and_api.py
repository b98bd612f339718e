"""What the page says about a real API that limits, drains, stops and returns."""

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from bench.load import PYTHON, Service
from tests.support import ROOT
from tests.support.browsing import Visit, page_process
from tests.support.system import KEY, Up, frozen

DRAIN_S = "5"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page-and-api")


@pytest.fixture(scope="module")
def limited_key(folder: Path) -> str:
    """A key with a limit of one request a minute."""
    create = [str(PYTHON), "-m", "api", "keys", "create", "limited", "--requests-per-minute", "1"]
    settings = {"API_KEYS_FILE": str(folder / "keys.json"), "PATH": "/usr/bin"}
    made = subprocess.run(create, cwd=ROOT, env=settings, capture_output=True, text=True, check=True)
    return made.stdout.split()[-1]


@pytest.fixture(scope="module")
def api(folder: Path, limited_key: str, first_up: Up) -> Iterator[Service]:
    settings = {
        "API_KEY": KEY,
        "API_KEYS_FILE": str(folder / "keys.json"),
        "API_DRAIN_TIMEOUT_S": DRAIN_S,
        "API_MAX_NUM_SEQS": "2",
    }
    service = Service(first_up.artifacts, folder / "api.log", settings)
    try:
        service.start()
        yield service
    finally:
        service.stop()


def test_the_page_says_how_long_a_limit_lasts(
    visit: Visit, api: Service, limited_key: str, folder: Path
) -> None:
    short = {"FRONTEND_API_KEY": limited_key, "FRONTEND_MAX_TOKENS": "32"}
    with page_process(folder / "page.log", api.url, 0, **short) as url:
        visit.open(url)
        visit.say("Name a color.")
        visit.answered(1)
        visit.say("And another one.")
        expect(visit.notice).to_contain_text("Too many chats at the moment. Try again in ")
        expect(visit.notice).to_contain_text("seconds. Your message is kept.")


def test_the_page_says_that_its_key_is_refused(visit: Visit, api: Service, folder: Path) -> None:
    with page_process(folder / "page.log", api.url, FRONTEND_API_KEY="a-key-that-nobody-made") as url:
        visit.page.goto(url)
        expect(visit.page.locator("#banner")).to_contain_text("refused this page's key")


def test_the_page_reports_draining_stopping_and_restarting_without_a_reload(
    visit: Visit, api: Service, folder: Path
) -> None:
    """The running stream is cut when the drain ends, and what arrived stays.

    The engine is frozen after its first words, so that no machine is fast enough to finish the answer.
    """
    page, banner = visit.page, visit.page.locator("#banner")
    long = {"FRONTEND_API_KEY": KEY, "FRONTEND_TEMPERATURE": "0", "FRONTEND_MAX_TOKENS": "1900"}
    with page_process(folder / "page.log", api.url, 0, **long) as url:
        visit.open(url)
        visit.say("Tell me a very long story about every color that there is.")
        answer = page.locator("#chatbot .bot-row [data-testid=bot]").first
        expect(answer).to_contain_text(" ")
        with frozen(api.engine()):
            assert api.process
            api.process.send_signal(signal.SIGTERM)
            expect(banner).to_contain_text("The service is stopping")
            expect(visit.notice).to_contain_text("What arrived is kept")
        assert api.process.wait(60) == 0
        expect(answer).to_contain_text(" ")
        expect(banner).to_contain_text("The API does not answer")
        api.start()
        expect(banner).not_to_be_visible(timeout=60_000)
        visit.limit_answers(32)
        visit.say("Name a color.")
        visit.answered(2)
    log = (folder / "page.log").read_text()
    assert "story" not in log and json.dumps(KEY)[1:-1] not in log

"""What a model thinks before its answer, on the page in a real browser."""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, ViewportSize, expect

from tests.support.browsing import DESKTOP, PHONE, Visit, faults_of, page_process, scripted_api
from tests.support.scripted_api import THOUGHTS
from tests.support.system import SCREENSHOTS


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("thoughts") / "log"


@pytest.fixture(scope="module")
def scripted(log: Path) -> Iterator[str]:
    with scripted_api(log) as models:
        yield models.removesuffix("/v1/models")


@pytest.fixture(scope="module")
def page_url(scripted: str, log: Path) -> Iterator[str]:
    with page_process(log, scripted) as url:
        yield url


def thoughts(visit: Visit) -> Locator:
    return visit.page.locator("#chatbot .thoughts")


def test_thoughts_are_open_while_they_come_then_folded_and_stay_with_the_chat(
    visit: Visit, page_url: str, scripted: str, tmp_path: Path
) -> None:
    visit.open(page_url)
    page, box = visit.page, thoughts(visit)
    visit.say("Please think about a hash table.")
    expect(box.locator("summary")).to_have_text("Thinking")
    expect(box.locator("pre")).to_be_visible()
    expect(visit.answered(1)).to_contain_text("finds a value by its key")
    for _ in ("answered", "reloaded"):
        expect(box.locator("summary")).to_have_text("Thoughts")
        expect(box.locator("pre")).not_to_be_visible()
        box.locator("summary").click()
        expect(box.locator("pre")).to_have_text(THOUGHTS, use_inner_text=True)
        page.reload()
    with page.expect_download() as download:
        visit.menu("#to-json")
    download.value.save_as(tmp_path / "chat.json")
    answer = json.loads((tmp_path / "chat.json").read_text())["messages"][1]
    assert answer["reasoning_content"] == THOUGHTS and "asks about" not in answer["content"]
    visit.say("And a tree?")
    visit.answered(2)
    with urllib.request.urlopen(f"{scripted}/requests") as response:
        request = json.load(response)[-1]
    assert [set(message) for message in request["messages"]] == [{"role", "content"}] * 3
    assert "asks about" not in json.dumps(request)


@pytest.mark.parametrize(
    ("appearance", "dark", "viewport"),
    [("light", False, DESKTOP), ("dark", True, DESKTOP), ("phone", False, PHONE)],
)
def test_axe_finds_no_fault_in_thoughts_and_nothing_is_clipped(
    browser: Browser, page_url: str, appearance: str, dark: bool, viewport: ViewportSize
) -> None:
    context = browser.new_context(viewport=viewport, color_scheme="dark" if dark else "light")
    visit = Visit(context.new_page())
    visit.open(page_url)
    visit.say("Please think about a hash table.")
    visit.answered(1)
    faults = faults_of(visit.page)
    thoughts(visit).locator("summary").click()
    visit.say("think and only that")
    expect(visit.notice).to_contain_text("still thinking")
    expect(thoughts(visit)).to_have_count(2)
    faults += faults_of(visit.page)
    visit.page.screenshot(path=SCREENSHOTS / f"thoughts-{appearance}.png")
    wide = visit.page.evaluate("document.documentElement.scrollWidth > innerWidth")
    context.close()
    assert faults == [] and visit.faults == [] and not wide

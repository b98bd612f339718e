"""The page in a real browser, with the real API and with a scripted one."""

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ViewportSize, expect

from bench.load import free_port
from tests.support import ROOT
from tests.support.browsing import (
    DESKTOP,
    PHONE,
    Visit,
    faults_of,
    page_process,
    prefix_proxy,
    scripted_api,
)
from tests.support.system import SCREENSHOTS, Up, engine_of, frozen, metric, wait_until

# The focused element's name, and whether it or something closely around it has a ring.
FOCUS = """() => {
  const ring = (e) => e && getComputedStyle(e);
  const shows = (style) => style && (style.outlineStyle !== "none" || style.boxShadow !== "none");
  let e = document.activeElement, around = e, rings = e === document.body;
  for (let up = 0; up < 6 && around; up++, around = around.parentElement) rings ||= shows(ring(around));
  return [(e.id || e.ariaLabel || e.innerText || "").split("\\n")[0], rings];
}"""


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page") / "log"


@pytest.fixture(scope="module")
def scripted(log: Path) -> Iterator[str]:
    """The address of a scripted API."""
    with scripted_api(log) as models:
        yield models.removesuffix("/v1/models")


@pytest.fixture(scope="module")
def page_url(scripted: str, log: Path) -> Iterator[str]:
    """A page in front of the scripted API."""
    with page_process(log, scripted, FRONTEND_VOTES=str(log.with_name("votes.jsonl"))) as url:
        yield url


def set_state(api: str, state: str) -> None:
    urllib.request.urlopen(f"{api}/state", state.encode(), timeout=5).close()


def test_a_person_chats_with_the_real_model(first_up: Up, visit: Visit) -> None:
    visit.open(first_up.page_url)
    page = visit.page
    visit.limit_answers(32)
    page.locator("#chatbot .example").first.click()
    expect(page.locator("#chatbot .user-row")).to_have_count(1)
    expect(visit.answered(1)).not_to_be_empty()
    expect(page.locator("#chatbot .note")).to_contain_text("tokens/s · first after")
    page.screenshot(path=SCREENSHOTS / "chat.png")
    visit.say("And now in one word, please.")
    visit.answered(2)
    expect(page.locator("#meter")).to_contain_text("tokens")


def test_stop_ends_the_engines_work_and_the_answer_can_be_continued(first_up: Up, visit: Visit) -> None:
    visit.open(first_up.page_url)
    visit.say("Tell me a very long story.")
    answer = visit.page.locator("#chatbot .bot-row [data-testid=bot]").first
    expect(answer).to_contain_text(" ")
    with frozen(engine_of(first_up)):  # so that no answer is whole before it is stopped
        visit.page.locator("#chat-input textarea").fill("Not yet")
        visit.page.locator("#chat-input textarea").press("Enter")
        expect(visit.page.locator("#chatbot .user-row")).to_have_count(1)
        visit.page.locator("#stop").click()
        wait_until(lambda: metric(first_up, "finechat_active_streams") == 0)
        expect(visit.page.locator("#chatbot .note")).to_have_text("Stopped")
        begun = answer.inner_text()
        visit.choose("Continue")
        expect(visit.page.locator("#stop")).to_be_visible()
        visit.page.locator("#stop").click()
        expect(visit.page.locator("#send")).to_be_visible()
    assert answer.inner_text().startswith(begun)


def test_chats_survive_a_reload_and_a_restart_of_the_page(visit: Visit, scripted: str, log: Path) -> None:
    port, page = free_port(), visit.page
    titles = page.locator("#chats label")
    with page_process(log, scripted, port) as url:
        visit.open(url)
        visit.say("The first chat")
        visit.answered(1)
        page.locator("#new-chat").click()
        expect(page.locator("#chatbot .user-row")).to_have_count(0)
        visit.say("The second chat")
        visit.answered(1)
        page.reload()
        expect(titles).to_have_text(["The second chat", "The first chat"])
        expect(page.locator("#chatbot .user-row")).to_have_text(["The second chat"])
        stored = json.dumps(page.evaluate("({...localStorage})"))
        assert "second chat" not in stored, "veiled in the browser's storage"
    with page_process(log, scripted, port):
        titles.nth(1).click()
        expect(page.locator("#chatbot .user-row")).to_have_text(["The first chat"])
        visit.say("Still there?")
        visit.answered(2)
        page.reload()
        expect(titles).to_have_text(["The first chat", "The second chat"])
        visit.menu("#delete")
        expect(titles).to_have_text(["The second chat"])
        visit.faults.clear()  # calls to the page while it was away


def test_the_examples_of_the_model_lead_through_one_chat(visit: Visit, page_url: str) -> None:
    visit.open(page_url)
    page, examples, next_ones = visit.page, visit.page.locator("#chatbot .example"), "#chatbot .option"
    expect(page.locator("#chatbot .placeholder")).to_have_text("Explains data structures.")
    expect(examples).to_have_text(["Explain a table.\nhash(key)", "Explain a tree."])
    examples.first.click()
    visit.answered(1)
    expect(page.locator(next_ones)).to_have_text(["Explain a tree."])
    page.locator(next_ones).click()
    visit.answered(2)
    expect(page.locator("#chatbot .user-row")).to_have_count(2)
    expect(page.locator(next_ones)).to_have_count(0)
    page.locator("#settings > button").click()
    expect(page.locator("#max-tokens input[type=range]")).to_have_attribute("max", "2048")


def test_a_turn_can_be_edited_retried_and_undone(visit: Visit, page_url: str) -> None:
    visit.open(page_url)
    page, questions = visit.page, visit.page.locator("#chatbot .user-row")
    for count, text in enumerate(("*one*\n    two", "three"), start=1):
        visit.say(text)
        visit.answered(count)
    page.locator("#chatbot [aria-label=Edit]").first.click()
    box = page.locator(".edit-textarea")
    expect(box).to_have_value("*one*\n    two")
    box.fill("<b>four</b>")
    page.locator("#chatbot [aria-label=Submit]").click()
    visit.answered(1)
    expect(questions).to_have_text(["<b>four</b>"])
    page.locator("#chatbot [aria-label=Retry]").click()
    expect(page.locator("#stop")).to_be_visible()
    visit.answered(1)
    page.locator("#chatbot [aria-label=Undo]").click()
    expect(questions).to_have_count(0)
    expect(page.locator("#chat-input textarea")).to_have_value("<b>four</b>")


def test_chats_can_be_exported_and_imported(visit: Visit, page_url: str, tmp_path: Path) -> None:
    visit.open(page_url)
    visit.say("Export me")
    answer = visit.answered(1).text_content() or "nothing"
    for item, ending in (("#to-json", "json"), ("#to-markdown", "md")):
        with visit.page.expect_download() as download:
            visit.menu(item)
        file = tmp_path / download.value.suggested_filename
        assert file.name == f"export-me.{ending}"
        download.value.save_as(file)
        visit.page.locator("#new-chat").click()
        expect(visit.page.locator("#chatbot .user-row")).to_have_count(0)
        with visit.page.expect_file_chooser() as chooser:
            visit.menu("#from-file")
        chooser.value.set_files(file)
        expect(visit.page.locator("#chatbot .user-row")).to_have_text(["Export me"])
        expect(visit.page.locator("#chatbot .bot-row [data-testid=bot]").first).to_have_text(answer)
    (tmp_path / "other.txt").write_text("no chat")
    with visit.page.expect_file_chooser() as chooser:
        visit.menu("#from-file")
    chooser.value.set_files(tmp_path / "other.txt")
    expect(visit.notice).to_contain_text("There is no chat in this file")


def test_two_models_are_compared_and_the_vote_becomes_a_training_row(
    visit: Visit, page_url: str, log: Path
) -> None:
    visit.open(page_url)
    page = visit.page
    page.locator("#comparing input").check()
    expect(page.locator("#rival-model input")).to_have_value("Llama-tuned")
    visit.say("Compare these")
    visit.answered(1)
    visit.answered(1, "#rival")
    expect(page.locator("#rival .note")).to_contain_text("Llama-tuned")
    page.screenshot(path=SCREENSHOTS / "compare.png")
    visit.say("More")
    visit.answered(2, "#rival")
    page.locator("#rival [aria-label=Edit]").first.click()
    page.locator(".edit-textarea").fill("Compare those")
    page.locator("#rival [aria-label=Submit]").click()
    expect(page.locator("#chatbot .user-row")).to_have_text(["Compare those"])
    visit.answered(1)
    visit.answered(1, "#rival")
    page.get_by_role("button", name="Right is better").click()
    expect(page.locator("#vote-text")).to_contain_text("Thank you")
    votes = log.with_name("votes.jsonl")
    program = (
        "import json, sys; from trainer.data.parse import Reading, parse_row;"
        "rows = [json.loads(line) for line in sys.stdin];"
        "reading = Reading(use='chosen');"
        "print([[m.role for m in parse_row(row, 'votes', reading=reading).messages] for row in rows])"
    )
    rows = subprocess.run(
        [str(ROOT / ".venv/frontend/bin/python"), str(ROOT / "frontend/votes.py"), str(votes)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert json.loads(rows)["chosen_model"] == "Llama-tuned"
    read = subprocess.run(
        [str(ROOT / ".venv/trainer/bin/python"), "-c", program],
        cwd=ROOT, input=rows, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert read.stdout.strip() == "[['user', 'assistant']]"
    assert "Compare these" not in log.read_text() and "hash table" not in log.read_text()


# The browser has kept the settings, and nothing has changed there for a second.
KEPT = """() => {
    const kept = localStorage.getItem("settings");
    if (kept !== window.lastKept) [window.lastKept, window.keptAt] = [kept, Date.now()];
    return kept && Date.now() - window.keptAt > 1000;
}"""


def test_settings_are_sent_and_survive_a_reload(visit: Visit, page_url: str, scripted: str) -> None:
    visit.open(page_url)
    page = visit.page
    page.locator("#settings > button").click()
    page.locator("#system-prompt textarea").fill("Be brief.")
    page.locator("#seed input").fill("7")
    page.locator("#stop-texts textarea").fill("END")
    for knob, value in (("#temperature", "0.25"), ("#top-p", "0.9"), ("#max-tokens", "64")):
        page.locator(f"{knob} input[type=number]").fill(value)
        page.locator(f"{knob} input[type=number]").press("Tab")
    page.keyboard.press("Escape")
    page.wait_for_function(KEPT)
    page.reload()
    expect(page.locator("#model input")).not_to_have_value("")
    page.locator("#settings > button").click()
    expect(page.locator("#system-prompt textarea")).to_have_value("Be brief.")
    page.keyboard.press("Escape")
    visit.say("Which settings?")
    visit.answered(1)
    with urllib.request.urlopen(f"{scripted}/requests") as response:
        request = json.load(response)[-1]
    assert request["messages"][0] == {"role": "system", "content": "Be brief."}
    sent = {name: request[name] for name in ("temperature", "top_p", "max_tokens", "seed", "stop")}
    assert sent == {"temperature": 0.25, "top_p": 0.9, "max_tokens": 64, "seed": 7, "stop": ["END"]}


def test_the_reader_sees_what_went_wrong_and_can_recover(visit: Visit, page_url: str, scripted: str) -> None:
    visit.open(page_url)
    page = visit.page
    visit.say("snap")
    expect(visit.notice).to_contain_text("cut off. What arrived is kept")
    visit.choose("Continue")
    expect(visit.answered(1)).to_contain_text("finds a A hash table")
    visit.say("are you busy?")
    expect(visit.notice).to_contain_text("Try again in 7 seconds. Your message is kept.")
    visit.say("this is too long")
    expect(visit.notice).to_contain_text("no longer fits")
    page.screenshot(path=SCREENSHOTS / "too-long.png")
    visit.choose("Leave out the oldest")
    visit.answered(2)
    expect(page.locator("#chatbot .divider")).to_be_visible()
    set_state(scripted, "key")
    visit.say("And with a wrong key?")
    expect(visit.notice).to_contain_text("refused this page's key")
    set_state(scripted, "starting")
    expect(page.locator("#banner")).to_contain_text("The engine is loading the weights")
    page.screenshot(path=SCREENSHOTS / "starting.png")
    set_state(scripted, "")
    expect(page.locator("#banner")).not_to_be_visible(timeout=10_000)
    visit.choose("Try again")
    visit.answered(3)


def test_no_reload_is_needed_when_the_api_goes_down_and_returns(visit: Visit, log: Path) -> None:
    port = free_port()
    with page_process(log, f"http://127.0.0.1:{port}") as url:
        visit.page.goto(url)
        expect(visit.page.locator("#banner")).to_contain_text("The API does not answer")
        visit.say("Are you there?")
        expect(visit.notice).to_contain_text(
            "does not answer. It may be down or still starting. Your message"
        )
        with scripted_api(log, port):
            expect(visit.page.locator("#banner")).not_to_be_visible(timeout=15_000)
            visit.choose("Try again")
            visit.answered(1)


def test_the_page_works_below_a_prefix_and_enforces_the_visitors_limits(
    visit: Visit, scripted: str, log: Path
) -> None:
    settings: dict[str, Any] = {"FRONTEND_ROOT_PATH": "/chat", "FRONTEND_VISITOR_MESSAGES_PER_MINUTE": "1"}
    with page_process(log, scripted, **settings) as upstream, prefix_proxy("/chat", upstream) as url:
        visit.open(url)
        visit.say("Hello through the proxy")
        visit.answered(1)
        visit.say("And again")
        expect(visit.notice).to_contain_text("a lot of messages in one minute. Try again in ")


def test_everything_can_be_done_with_the_keyboard(visit: Visit, page_url: str) -> None:
    visit.open(page_url)
    page = visit.page
    expect(page.locator("#chat-input textarea")).to_be_focused()
    page.keyboard.type("Typed")
    page.keyboard.press("Enter")
    visit.answered(1)
    reached = set()
    for _ in range(24):
        page.keyboard.press("Tab")
        name, rings = page.evaluate(FOCUS)
        reached.add(name)
        assert rings, f"nothing shows that {name} has the focus"
    assert {"new-chat", "menu", "Model", "Settings", "More", "Edit", "Retry", "Undo", "send"} <= reached


@pytest.mark.parametrize(
    ("appearance", "dark", "viewport"),
    [("light", False, DESKTOP), ("dark", True, DESKTOP), ("phone", False, PHONE)],
)
def test_axe_finds_no_fault_and_nothing_is_clipped(
    browser: Browser, page_url: str, appearance: str, dark: bool, viewport: ViewportSize
) -> None:
    context = browser.new_context(viewport=viewport, color_scheme="dark" if dark else "light")
    visit = Visit(context.new_page())
    visit.open(page_url)
    page = visit.page
    faults = faults_of(page)
    visit.say("Explain what a hash table is")
    visit.answered(1)
    visit.say("snap")
    expect(visit.notice).to_be_visible()
    page.screenshot(path=SCREENSHOTS / f"{appearance}.png")
    faults += faults_of(page)
    for card in ("#settings", "#more"):
        page.locator(f"{card} > button").click()
        faults += faults_of(page)
        page.keyboard.press("Escape")
    page.locator("#comparing input").check()
    expect(page.locator("#rival")).to_be_visible()
    faults += faults_of(page)
    wide = page.evaluate("document.documentElement.scrollWidth > innerWidth")
    context.close()
    assert faults == [] and not wide

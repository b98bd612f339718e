"""Make the pictures of README.md and docs/training.md with a real model and its base.

    .venv/tests/bin/python bench/pictures.py --artifacts artifacts    # after `make up` and `make test`

The first question is the page's first example: the card of a held-out object. docs/images/turns-1.png to
turns-5.png are the first chats of bench/turns.py, good or bad; the last one has talk between two cards.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.load import Service  # noqa: E402 - run as a program, only its folder is on the path
from tests.support.browsing import CHROMIUM, CHROMIUM_FLAGS, DESKTOP, PHONE, Visit, page_process  # noqa: E402

DOCS = ROOT / "docs"
CHATS = 5
TALK = "What is the capital of France?"
LONG: Any = {"width": 1100, "height": 1500}
PICTURES: tuple[tuple[str, bool, dict[str, Any]], ...] = (
    ("chat.png", False, {"viewport": DESKTOP}),
    ("images/compare.png", True, {"viewport": DESKTOP}),
    ("images/dark.png", False, {"viewport": DESKTOP, "color_scheme": "dark"}),
    ("images/phone.png", False, {"viewport": PHONE}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--artifacts", type=Path, default=ROOT / "artifacts")
    artifacts = parser.parse_args().artifacts.absolute()
    asked = json.loads((artifacts / "models" / "current" / "manifest.json").read_text())["examples"][0]
    chats = questions()
    chats[-1][1] = TALK
    [base] = (path for path in (artifacts / "bases").iterdir() if path.is_dir())
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {"FRONTEND_TEMPERATURE": "0", "FRONTEND_VOTES": f"{folder}/votes.jsonl"}
        service = Service(artifacts, Path(folder, "api.log"), {"API_BASE_DIR": str(base)})
        try:
            service.start()
            with (
                page_process(Path(folder, "page.log"), service.url, **settings) as url,
                sync_playwright() as playwright,
            ):
                browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
                for name, comparing, options in PICTURES:
                    take(browser, url, [asked], name, comparing, options)
                for number, chat in enumerate(chats, 1):
                    take(browser, url, chat, f"images/turns-{number}.png", False, {"viewport": LONG})
                browser.close()
        finally:
            service.stop()


def questions() -> list[list[str]]:
    """Return the questions of the first chats that bench/turns.py holds."""
    command = [str(ROOT / ".venv/trainer/bin/python"), str(ROOT / "bench/turns.py"), "--list"]
    done = subprocess.run([*command, "--chats", str(CHATS)], capture_output=True, text=True, check=True)
    found: list[list[str]] = json.loads(done.stdout)
    return found


def take(
    browser: Browser, url: str, asked: list[str], name: str, comparing: bool, options: dict[str, Any]
) -> None:
    """Picture the chat after its answers."""
    context = browser.new_context(**options)
    visit = Visit(context.new_page())
    visit.open(url)
    if comparing:
        visit.page.locator("#comparing input").check()
    for number, question in enumerate(asked, 1):
        visit.say(question)
        visit.answered(number)
    if comparing:
        visit.answered(1, "#rival")
    visit.page.mouse.move(0, 0)
    visit.page.screenshot(path=DOCS / name)
    context.close()
    print(f"docs/{name}")


if __name__ == "__main__":
    main()

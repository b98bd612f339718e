"""Make the pictures of README.md, docs/chat.png and docs/images, with a real model and its base.

    .venv/tests/bin/python bench/pictures.py --artifacts artifacts    # after `make up` and `make test`

The question is for the card of a held-out object that only the tuned model writes correctly.
"""

import argparse
import json
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
    samples = json.loads((artifacts / "models" / "current" / "samples.json").read_text())
    learnt = [s["prompt"] for s in samples if s["tuned"] == s["reference"] != s["base"]]
    asked = min(learnt, key=len)
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
                    take(browser, url, asked, name, comparing, options)
                browser.close()
        finally:
            service.stop()


def take(browser: Browser, url: str, asked: str, name: str, comparing: bool, options: dict[str, Any]) -> None:
    """Picture the chat after one answer."""
    context = browser.new_context(**options)
    visit = Visit(context.new_page())
    visit.open(url)
    if comparing:
        visit.page.locator("#comparing input").check()
    visit.say(asked)
    visit.answered(1)
    if comparing:
        visit.answered(1, "#rival")
    visit.page.mouse.move(0, 0)
    visit.page.screenshot(path=DOCS / name)
    context.close()
    print(f"docs/{name}")


if __name__ == "__main__":
    main()

"""Start, drive and watch page processes and a real browser."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from playwright.sync_api import Locator, Page, ViewportSize, expect

from bench.load import free_port
from tests.support import PATIENCE_S, ROOT

CHROMIUM = "/usr/bin/chromium"
CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking",
                  "--disable-component-update", "--disable-sync", "--no-first-run"]  # fmt: skip
PHONE = ViewportSize(width=390, height=844)
DESKTOP = ViewportSize(width=1280, height=860)
expect.set_options(timeout=PATIENCE_S * 1000)


@contextmanager
def running(command: list[str], url: str, log: Path, **settings: str) -> Iterator[str]:
    """Run a process that serves `url` until the block ends."""
    environment = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", **settings}
    with log.open("ab") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not _answers(url):
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, f"{url} does not answer"
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(10)


def page_process(log: Path, api_url: str, port: int = 0, **settings: str) -> Any:
    """Run `frontend/app.py` in front of `api_url`, with `settings` as FRONTEND_ variables."""
    port = port or free_port()
    variables = {"FRONTEND_API_URL": api_url, "FRONTEND_PORT": str(port), "FRONTEND_TITLE": "finechat"}
    command = [str(ROOT / ".venv/frontend/bin/python"), str(ROOT / "frontend/app.py")]
    return running(command, f"http://127.0.0.1:{port}/", log, **(variables | settings))


def scripted_api(log: Path, port: int = 0) -> Any:
    """Run `scripted_api.py`."""
    port = port or free_port()
    command = [sys.executable, str(Path(__file__).with_name("scripted_api.py")), str(port)]
    return running(command, f"http://127.0.0.1:{port}/v1/models", log)


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


@contextmanager
def prefix_proxy(prefix: str, upstream: str) -> Iterator[str]:
    """Run a reverse proxy that serves `upstream` below `prefix`, as nginx's `location` does."""
    host = upstream.removeprefix("http://").rstrip("/")

    class Proxy(BaseHTTPRequestHandler):
        def _pass_on(self) -> None:
            if not self.path.startswith(prefix):
                return self.send_error(404)
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            with closing(HTTPConnection(host)) as connection:
                connection.request(self.command, self.path.removeprefix(prefix), body, dict(self.headers))
                with connection.getresponse() as answer:
                    self._hand_back(answer)

        def _hand_back(self, answer: HTTPResponse) -> None:
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                    self.send_header(name, value)
            self.end_headers()
            while data := answer.read1(65536):
                self.wfile.write(data)
                self.wfile.flush()

        do_GET = do_POST = _pass_on

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}{prefix}/"
    finally:
        server.shutdown()
        server.server_close()


@dataclass
class Visit:
    """A page in the browser, and the faults that were seen."""

    page: Page
    faults: list[str] = field(default_factory=list)

    def open(self, url: str) -> None:
        home = url.split("/", 3)[2]
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on(
            "request",
            lambda request: (
                None
                if home in request.url or request.url.startswith(("data:", "blob:"))
                else self.faults.append(f"called {request.url}")
            ),
        )
        self.page.goto(url)
        expect(self.page.locator("#model input")).not_to_have_value("")

    def say(self, text: str) -> None:
        expect(self.page.locator("#send")).to_be_visible()
        self.page.locator("#chat-input textarea").fill(text)
        self.page.locator("#chat-input textarea").press("Enter")

    def limit_answers(self, tokens: int) -> None:
        """Set how long an answer may be: a model of few training steps may not end it before the context."""
        self.page.locator("#settings > button").click()
        self.page.locator("#max-tokens input[type=number]").fill(str(tokens))
        self.page.locator("#max-tokens input[type=number]").press("Tab")
        self.page.keyboard.press("Escape")

    def answered(self, count: int, box: str = "#chatbot") -> Locator:
        """Wait for the end of `count` answers and return the last."""
        expect(self.page.locator(f"{box} .note")).to_have_count(count)
        expect(self.page.locator("#send")).to_be_visible()
        return self.page.locator(f"{box} .bot-row:not(:has(.note, .notice)) [data-testid=bot]").last

    def choose(self, label: str) -> None:
        self.page.locator("#chatbot .option", has_text=label).click()

    @property
    def notice(self) -> Locator:
        return self.page.locator("#chatbot .notice")

    def menu(self, item: str) -> None:
        self.page.locator("#more > button").click()
        self.page.locator(item).click()


def faults_of(page: Page) -> list[str]:
    """Return all that axe finds, of any impact."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [f"{fault['id']}: {fault['nodes'][0]['html'][:200]}" for fault in found]

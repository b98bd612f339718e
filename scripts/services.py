"""Start the API and the page for `make up`, wait until they are ready, and watch them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from environments import ROOT, SetupError, python, say, service_environment
from processes import Children

READY_WITHIN_S = 600
WATCH_EVERY_S = 2
LOOPBACK = ("127.0.0.1", "localhost")
ANY_ADDRESS = ("0.0.0.0", "::")


class Settings:
    """The environment variables of `make up`, read once."""

    def __init__(self) -> None:
        self.profile = os.environ.get("PROFILE") or "quickstart"
        self.artifacts = Path(os.environ.get("ARTIFACTS_DIR") or ROOT / "artifacts").absolute()
        self.api_port = _port("API_PORT", 8000)
        self.page_port = _port("FRONTEND_PORT", 7860)
        self.api_key = os.environ.get("API_KEY") or ""
        host = os.environ.get("API_HOST") or "127.0.0.1"
        if not self.api_key and host not in LOOPBACK:
            raise SetupError(
                f"API_HOST={host} can be reached from other machines, so API_KEY must be set too "
                "(`openssl rand -hex 24` makes one)"
            )
        self.api_url = f"http://{'127.0.0.1' if host in ANY_ADDRESS else host}:{self.api_port}"
        self.page_url = f"http://127.0.0.1:{self.page_port}"


def check_ports(settings: Settings) -> None:
    """Check that the ports are free. Raises: SetupError naming a port that is not."""
    if settings.api_port == settings.page_port:
        raise SetupError(f"API_PORT and FRONTEND_PORT are both {settings.api_port}; change one")
    for name, port in (("API_PORT", settings.api_port), ("FRONTEND_PORT", settings.page_port)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                raise SetupError(
                    f"port {port} is in use; stop what uses it, or set {name} to another"
                ) from None


def start_api(settings: Settings, children: Children) -> subprocess.Popen[bytes]:
    """Start the API with the current model."""
    environment = {
        **service_environment(),
        "ARTIFACTS_DIR": str(settings.artifacts),
        "API_PORT": str(settings.api_port),
    }
    return children.start([python("api"), "-m", "api"], environment, _log(settings, "API"))


def start_page(settings: Settings, children: Children) -> subprocess.Popen[bytes]:
    """Start the page. The user's FRONTEND_* variables override these."""
    environment = {
        "FRONTEND_TITLE": "finechat",
        "FRONTEND_TEMPERATURE": "0",
        "FRONTEND_VOTES": str(settings.artifacts / "votes.jsonl"),
        **service_environment(),
        "FRONTEND_API_URL": settings.api_url,
        "FRONTEND_API_KEY": settings.api_key,
        "FRONTEND_PORT": str(settings.page_port),
    }
    command = [python("frontend"), "frontend/app.py"]
    return children.start(command, environment, _log(settings, "page"))


def wait_until_ready(url: str, process: subprocess.Popen[bytes], name: str, settings: Settings) -> None:
    """Return once `url` answers 200. Raises: SetupError if the process ends or READY_WITHIN_S pass."""
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SetupError(_ended(name, process, settings))
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                if response.status == 200:
                    say(f"   {name}: answers at {url}")
                    return
        except OSError:  # URLError is an OSError
            time.sleep(0.2)
    raise SetupError(f"the {name} was not ready after {READY_WITHIN_S} s; see {_log(settings, name)}")


def first_token_s(settings: Settings, begun: float) -> float:
    """Stream one short answer; return the seconds from the start of `make up` to its first token."""
    headers = {"Content-Type": "application/json", **_authorization(settings)}
    body = {**example_request(settings), "max_tokens": 8}
    request = urllib.request.Request(
        f"{settings.api_url}/v1/chat/completions", json.dumps(body).encode(), headers
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            for line in response:
                if line.startswith(b"data: ") and b'"content"' in line:
                    return time.monotonic() - begun
    except urllib.error.URLError as error:
        raise SetupError(f"the API is up but did not stream an answer: {error}") from None
    raise SetupError("the API is up but its answer held no token")


def example_request(settings: Settings) -> dict[str, Any]:
    """Return a chat request with the first prompt that the page shows as an example."""
    manifest = _current(settings, "manifest.json")
    prompts = manifest.get("examples") or [sample_of(settings)["prompt"]]
    messages = [{"role": "user", "content": prompts[0]}]
    return {"model": manifest["name"], "messages": messages, "stream": True}


def watch(services: dict[str, subprocess.Popen[bytes]], settings: Settings) -> None:
    """Wait until a service ends or the API reports that its engine is dead. Raises: SetupError."""
    while True:
        for name, process in services.items():
            if process.poll() is not None:
                raise SetupError(_ended(name, process, settings))
        try:
            urllib.request.urlopen(f"{settings.api_url}/health/live", timeout=WATCH_EVERY_S).close()
        except urllib.error.HTTPError:
            raise SetupError(f"the API's engine has failed (log: {_log(settings, 'API')})") from None
        except OSError:
            pass  # too busy to answer in time, or ending; the next check decides
        time.sleep(WATCH_EVERY_S)


def _current(settings: Settings, file: str) -> Any:
    """Return a JSON file of the current model."""
    return json.loads((settings.artifacts / "models" / "current" / file).read_text(encoding="utf-8"))


def sample_of(settings: Settings) -> Any:
    """Return the longest sample that only fine-tuning made right, or else the first one."""
    samples = _current(settings, "samples.json")
    mended = [s for s in samples if s["tuned"] == s["reference"] != s["base"]]
    return max(mended, key=lambda s: len(s["reference"]), default=samples[0])


def _port(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise SetupError(f"{name}={text!r} is not a port; give a number from 1 to 65535")
    return int(text)


def _authorization(settings: Settings) -> dict[str, str]:
    return {"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}


def _log(settings: Settings, name: str) -> Path:
    log = settings.artifacts / "logs" / f"{name.lower()}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    return log


def _ended(name: str, process: subprocess.Popen[bytes], settings: Settings) -> str:
    log = _log(settings, name)
    lines = [x for x in log.read_text(errors="replace").splitlines() if x.strip()]
    last = lines[-1] if lines else "it printed nothing"
    return f"the {name} ended with exit {process.returncode}: {last} (log: {log})"

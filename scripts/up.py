"""`make up`: from a bare machine to a chat page over a model that was fine-tuned here.

Set up, train, serve; what is finished is skipped. Stays in the foreground: Ctrl-C or SIGTERM ends
every process it started within ten seconds. Settings are environment variables, listed in README.md.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from environments import (
    ROOT,
    SetupError,
    build,
    check_python,
    end_with_parent,
    install_system_packages,
    python,
    say,
    service_environment,
)

STOP_WITHIN_S = 8
READY_WITHIN_S = 600
WATCH_EVERY_S = 2
LOOPBACK = ("127.0.0.1", "localhost")
ANY_ADDRESS = ("0.0.0.0", "::")
STEPS = ("system", "environments", "model", "services")


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


class Children:
    """The processes we started, each in a session of its own so that its whole tree can be ended."""

    def __init__(self) -> None:
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []

    def start(
        self, name: str, command: list[str], environment: dict[str, str], log: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a process from the project's folder. log: a file for its output, or our own."""
        output = log.open("wb") if log else None
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        self._running.append((name, process))
        return process

    def stop(self) -> None:
        """SIGTERM to every process, SIGKILL to what is left of its group after STOP_WITHIN_S.

        Not SIGTERM to the group: the API drains its streams, which its engine must live to see.
        """
        for _, process in self._running:
            process.terminate()
        deadline = time.monotonic() + STOP_WITHIN_S
        for _, process in self._running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def main() -> int:
    """Run the steps; 0 after a stop that was asked for, 1 after a problem told in one line."""
    begun = time.monotonic()
    children = Children()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        _up(Settings(), children, begun)
    except SetupError as error:
        print(f"make up: {error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        say("stopping")
        return 0
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        children.stop()
    return 0


def _up(settings: Settings, children: Children, begun: float) -> None:
    check_python()
    _check_ports(settings)
    with _Step("system", "look for system packages"):
        install_system_packages()
    pool = ThreadPoolExecutor(1)
    with _Step("environments", "one for each service, kept in .venv"):
        build("trainer")
        # The other two are built while the model trains: they are mostly download and disk.
        others = [pool.submit(build, name) for name in ("api", "frontend")]
        pool.shutdown(wait=False)
    with _Step("model", f"profile {settings.profile}, into {settings.artifacts}"):
        _make_model(settings, children)
        _wait_for(others)
    with _Step("services", "start the API and the chat page"):
        api = _start_api(settings, children)
        page = _start_page(settings, children)
        _wait_until_ready(f"{settings.api_url}/health/ready", api, "API", settings)
        _wait_until_ready(settings.page_url, page, "page", settings)
    _show_sample(settings)
    _say_where(settings, _first_token_s(settings, begun))
    _watch({"API": api, "page": page}, settings)


def _watch(services: dict[str, subprocess.Popen[bytes]], settings: Settings) -> None:
    """Stay until a service ends or the API says that its engine is dead. Raises: SetupError."""
    while True:
        for name, process in services.items():
            if process.poll() is not None:
                raise SetupError(_ended(name, process, settings))
        try:
            urllib.request.urlopen(f"{settings.api_url}/health/live", timeout=WATCH_EVERY_S).close()
        except urllib.error.HTTPError:
            raise SetupError(f"the API's engine has failed (log: {_log(settings, 'API')})") from None
        except OSError:
            pass  # too busy to answer in time, or ending: the next look tells
        time.sleep(WATCH_EVERY_S)


def _make_model(settings: Settings, children: Children) -> None:
    command = [python("trainer"), "-m", "trainer", "run", "--config", settings.profile]
    trainer = children.start(
        "trainer", [*command, "--artifacts", str(settings.artifacts)], service_environment()
    )
    if trainer.wait() != 0:
        raise SetupError("the model could not be made; the line above says why")


def _wait_for(others: list[Future[None]]) -> None:
    if not all(future.done() for future in others):
        say("   waiting for the environments of the API and the page")
    for future in others:
        future.result()


def _start_api(settings: Settings, children: Children) -> subprocess.Popen[bytes]:
    environment = {
        **service_environment(),
        "ARTIFACTS_DIR": str(settings.artifacts),
        "API_PORT": str(settings.api_port),
    }
    return children.start("API", [python("api"), "-m", "api"], environment, _log(settings, "API"))


def _start_page(settings: Settings, children: Children) -> subprocess.Popen[bytes]:
    environment = {
        "FRONTEND_TITLE": "finechat",
        "FRONTEND_INTRO": _current(settings, "manifest.json")["description"],
        "FRONTEND_EXAMPLES": str(_write_examples(settings)),
        "FRONTEND_TEMPERATURE": "0",
        **service_environment(),
        "FRONTEND_API_URL": settings.api_url,
        "FRONTEND_API_KEY": settings.api_key,
        "FRONTEND_PORT": str(settings.page_port),
    }
    command = [python("frontend"), "frontend/app.py"]
    return children.start("page", command, environment, _log(settings, "page"))


def _write_examples(settings: Settings) -> Path:
    """Held-out prompts for the page to offer, titled by the first line of their reference."""
    examples = [
        {"title": s["reference"].splitlines()[0].strip("# ")[:60], "prompt": s["prompt"]}
        for s in _current(settings, "samples.json")
    ]
    path = settings.artifacts / "examples.json"
    path.write_text(json.dumps(examples), encoding="utf-8")
    return path


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], name: str, settings: Settings) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SetupError(_ended(name, process, settings))
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                if response.status == 200:
                    say(f"   {name}: answers at {url}")
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise SetupError(f"the {name} was not ready after {READY_WITHIN_S} s; see {_log(settings, name)}")


def _first_token_s(settings: Settings, begun: float) -> float:
    """Stream one short answer; seconds from the start of `make up` to its first token."""
    headers = {"Content-Type": "application/json", **_authorization(settings)}
    body = {**_example_request(settings), "max_tokens": 8}
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


def _example_request(settings: Settings) -> dict[str, Any]:
    """A chat request with the held-out prompt that is shown as an example."""
    messages = [{"role": "user", "content": _sample(settings)["prompt"]}]
    return {"model": _current(settings, "manifest.json")["name"], "messages": messages, "stream": True}


def _show_sample(settings: Settings) -> None:
    """One held-out answer before and after fine-tuning, as the evaluation recorded it."""
    sample = _sample(settings)
    for title, text in (
        ("A prompt that it was never trained on", sample["prompt"]),
        ("The base model", sample["base"]),
        ("Your fine-tuned model", sample["tuned"]),
    ):
        say(f"\n── {title} " + "─" * max(0, 76 - len(title)))
        say(text)


def _sample(settings: Settings) -> Any:
    """The longest sample that fine-tuning made right, or else the first."""
    samples = _current(settings, "samples.json")
    mended = [s for s in samples if s["tuned"] == s["reference"] != s["base"]]
    return max(mended, key=lambda s: len(s["reference"]), default=samples[0])


def _say_where(settings: Settings, first_token_s: float) -> None:
    request = shlex.quote(json.dumps({**_example_request(settings), "temperature": 0}))
    key = ' -H "Authorization: Bearer $API_KEY"' if settings.api_key else ""
    say(f"\nReady: the first token was streamed {first_token_s:.0f} s after the start.")
    say(f"  chat page  {settings.page_url}")
    say(f"  API        {settings.api_url}/v1")
    say(
        f"  try        curl -N {settings.api_url}/v1/chat/completions{key} "
        f"-H 'Content-Type: application/json' -d {request}"
    )
    say("Ctrl-C stops both.")


def _current(settings: Settings, file: str) -> Any:
    """A JSON file of the model that is current."""
    return json.loads((settings.artifacts / "models" / "current" / file).read_text(encoding="utf-8"))


class _Step:
    """One line when a step begins and one when it ends, with what is left."""

    def __init__(self, name: str, what: str) -> None:
        self._place = STEPS.index(name) + 1
        self._label = f"== {self._place}/{len(STEPS)} {name}"
        self._what = what

    def __enter__(self) -> None:
        say(f"{self._label}: {self._what}")
        self._begun = time.monotonic()

    def __exit__(self, kind: object, *rest: object) -> None:
        if kind is None:
            left = ", ".join(STEPS[self._place :]) or "nothing"
            say(f"{self._label}: done in {time.monotonic() - self._begun:.1f} s; left: {left}")


def _port(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise SetupError(f"{name}={text!r} is not a port; give a number from 1 to 65535")
    return int(text)


def _check_ports(settings: Settings) -> None:
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


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # not SystemExit: that would wait for an installation in the background

"""`make up`: take a bare machine to a chat page with a model that was fine-tuned on it.

The steps are: set up, train, serve. Finished work is skipped. The program stays in the foreground; Ctrl-C
or SIGTERM ends every process that it started within ten seconds. Settings are environment variables, listed
in README.md.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor

from environments import (
    SetupError,
    build,
    build_trainer,
    check_python,
    install_system_packages,
    python,
    say,
    service_environment,
)
from processes import Children
from services import (
    Settings,
    check_ports,
    example_request,
    first_token_s,
    sample_of,
    start_api,
    start_page,
    wait_until_ready,
    watch,
)

STEPS = ("system", "environments", "model", "services")


def main() -> int:
    """Run the steps. Return 0 after a requested stop, 1 after a problem that one line describes."""
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
    check_ports(settings)
    with _Step("system", "look for system packages"):
        install_system_packages()
    pool = ThreadPoolExecutor(1)
    with _Step("environments", "one for each service, kept in .venv"):
        build_trainer(settings.profile)
        # The other two are built while the model trains, because they mostly wait for network and disk.
        others = [pool.submit(build, name) for name in ("api", "frontend")]
        pool.shutdown(wait=False)
    with _Step("model", f"profile {settings.profile}, into {settings.artifacts}"):
        _make_model(settings, children)
        _wait_for(others)
    with _Step("services", "start the API and the chat page"):
        api = start_api(settings, children)
        page = start_page(settings, children)
        wait_until_ready(f"{settings.api_url}/health/ready", api, "API", settings)
        wait_until_ready(settings.page_url, page, "page", settings)
    _show_sample(settings)
    _say_where(settings, first_token_s(settings, begun))
    watch({"API": api, "page": page}, settings)


def _make_model(settings: Settings, children: Children) -> None:
    command = [python("trainer"), "-m", "trainer", "run", "--config", settings.profile]
    command += ["--artifacts", str(settings.artifacts)]
    trainer = children.start(command, service_environment())
    if trainer.wait() != 0:
        raise SetupError("the model could not be made; the line above says why")


def _wait_for(others: list[Future[None]]) -> None:
    if not all(future.done() for future in others):
        say("   waiting for the environments of the API and the page")
    for future in others:
        future.result()


def _show_sample(settings: Settings) -> None:
    """Print one held-out answer before and after fine-tuning, as the evaluation recorded it."""
    sample = sample_of(settings)
    turn = len(sample.get("earlier", ())) // 2 + 1
    place = f", question {turn} of one chat" if turn > 1 else ""
    for title, text in (
        (f"A prompt that it was never trained on{place}", sample["prompt"]),
        ("The base model", sample["base"]),
        ("Your fine-tuned model", sample["tuned"]),
    ):
        say(f"\n── {title} " + "─" * max(0, 76 - len(title)))
        say(text)


def _say_where(settings: Settings, first_token_after_s: float) -> None:
    request = shlex.quote(json.dumps({**example_request(settings), "temperature": 0}))
    key = ' -H "Authorization: Bearer $API_KEY"' if settings.api_key else ""
    say(f"\nReady: the first token was streamed {first_token_after_s:.0f} s after the start.")
    say(f"  chat page  {settings.page_url}")
    say(f"  API        {settings.api_url}/v1")
    say(
        f"  try        curl -N {settings.api_url}/v1/chat/completions{key} "
        f"-H 'Content-Type: application/json' -d {request}"
    )
    say("Ctrl-C stops both.")


class _Step:
    """Print a line when a step begins and one when it ends, with the steps that are left."""

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


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # not SystemExit, which would wait for an installation in the background

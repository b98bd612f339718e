"""Run the steps of one client's script and print one JSON line for each.

A script decorates one function a step. The function runs at once. An exception is the failure of its step,
and the next step still runs. bench/clients.py sets the variables and reads the lines.
"""

import asyncio
import inspect
import json
import os
import subprocess
from collections.abc import Callable
from typing import Any, TypeVar

URL, KEY, MODEL, TOKENIZER = (os.environ[f"ZOO_{name}"] for name in ("URL", "KEY", "MODEL", "TOKENIZER"))
V1 = URL + "/v1"
COLOR = "Name a color."
TOO_LONG = "word " * 4000  # more tokens than the service's context
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
Error = TypeVar("Error", bound=BaseException)


def step(function: Callable[[], Any]) -> None:
    failure = ""
    try:
        result = function()
        if inspect.iscoroutine(result):
            asyncio.run(result)
    except (Exception, SystemExit) as error:
        failure = f"{type(error).__name__}: {error}".strip()[:2000]
    print("\n" + json.dumps({"step": function.__name__, "failure": failure}), flush=True)


def refused(kind: type[Error], call: Callable[[], Any]) -> Error:
    """Return the error of this class that the call raises. Raises: AssertionError if none comes."""
    try:
        result = call()
        if inspect.iscoroutine(result):
            result = asyncio.run(result)
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was expected, and this came: {result!r:.300}")


def command(*arguments: str, **settings: str) -> str:
    """Run a command line program and return what it printed. Raises: AssertionError if it fails."""
    environment = {**os.environ, **settings}
    done = subprocess.run(
        arguments, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=240
    )
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed[-1500:]
    return printed

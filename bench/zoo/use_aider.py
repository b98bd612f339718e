"""aider: a question, and an edit of a file, both in its own words."""

import json
import os
import sys
from pathlib import Path

from steps import COLOR, KEY, MODEL, TOO_LONG, V1, command, step

folder = Path(os.environ["HOME"], "aider")
folder.mkdir(exist_ok=True)
name = f"openai/{MODEL}"
# aider reads from this file how to ask a model that it does not know.
settings = [
    {"name": name, "edit_format": "whole", "use_repo_map": False, "extra_params": {"max_tokens": 200}}
]
(folder / "settings.yml").write_text(json.dumps(settings))


def aider(*arguments: str) -> str:
    os.chdir(folder)
    program = str(Path(sys.executable).with_name("aider"))
    printed = command(
        program, "--model", name, "--openai-api-base", V1, "--openai-api-key", KEY, "--no-git",
        "--yes-always", "--no-check-update", "--analytics-disable", "--no-show-release-notes", "--no-pretty",
        "--no-detect-urls",
        "--no-show-model-warnings", "--model-settings-file", "settings.yml",
        *arguments,
    )  # fmt: skip
    assert "litellm.BadRequestError" not in printed, printed[-1500:]
    return printed


@step
def plain() -> None:
    assert "Tokens:" in aider("--chat-mode", "ask", "--no-stream", "--message", COLOR)


@step
def stream() -> None:
    assert "Tokens:" in aider("--chat-mode", "ask", "--stream", "--message", COLOR)


@step
def turns() -> None:
    aider("--chat-mode", "ask", "--restore-chat-history", "--message", "Another.")


@step
def too_long() -> None:
    printed = aider("--chat-mode", "ask", "--message", TOO_LONG)
    assert "has hit a token limit" in printed, printed[-1500:]

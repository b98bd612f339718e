"""LiteLLM's proxy in front of the service, asked by openai and by Anthropic's form."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import openai
from steps import CITY, COLOR, KEY, MODEL, TOO_LONG, V1, refused, step

PORT = 24917
MASTER = "sk-of-the-proxy-and-long-enough-for-it"
CONFIG = f"""
model_list:
  - model_name: tuned
    litellm_params: {{model: "openai/{MODEL}", api_base: "{V1}", api_key: "{KEY}"}}
litellm_settings: {{telemetry: false, num_retries: 0}}
general_settings: {{master_key: "{MASTER}"}}
"""
api = openai.OpenAI(base_url=f"http://127.0.0.1:{PORT}/v1", api_key=MASTER, max_retries=0)
ASK: Any = {"model": "tuned", "messages": [{"role": "user", "content": COLOR}], "max_tokens": 8}
WEATHER: Any = {"type": "function", "function": {"name": "weather", "parameters": CITY}}


def start() -> subprocess.Popen[bytes]:
    config = Path(tempfile.mkdtemp(), "config.yaml")
    config.write_text(CONFIG)
    program = Path(sys.executable).with_name("litellm")
    command = [program, "--config", config, "--host", "127.0.0.1", "--port", str(PORT)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(f"http://127.0.0.1:{PORT}/health/liveliness", timeout=5).raise_for_status()
            return process
        except httpx.HTTPError:
            time.sleep(0.5)
    process.kill()
    raise SystemExit("litellm's proxy did not start")


def run() -> None:
    @step
    def plain() -> None:
        assert api.chat.completions.create(**ASK).choices[0].message.content

    @step
    def stream() -> None:
        assert len(list(api.chat.completions.create(**ASK, stream=True))) > 2

    @step
    def tools() -> None:
        asked = {**ASK, "tools": [WEATHER]}
        message = (
            api.chat.completions.create(**{**asked, "max_tokens": 64}, tool_choice="required")
            .choices[0]
            .message
        )
        [call] = message.tool_calls or []
        result = {"role": "tool", "tool_call_id": call.id, "content": "11 C, rain"}
        api.chat.completions.create(**{**asked, "messages": [*ASK["messages"], message, result]})

    @step
    def turns() -> None:
        messages = list(ASK["messages"])
        for _ in range(3):
            messages.append(api.chat.completions.create(**{**ASK, "messages": messages}).choices[0].message)
            messages.append({"role": "user", "content": "Another."})

    @step
    def responses() -> None:
        assert api.responses.create(model="tuned", input=COLOR, max_output_tokens=16).output

    @step
    def anthropic_form() -> None:
        address, key = f"http://127.0.0.1:{PORT}/v1/messages", {"x-api-key": MASTER}
        answer = httpx.post(address, json=ASK, headers=key, timeout=60)
        assert answer.status_code == 200 and answer.json()["content"], answer.text

    @step
    def too_long() -> None:
        long = {**ASK, "messages": [{"role": "user", "content": TOO_LONG}]}
        error = refused(openai.BadRequestError, lambda: api.chat.completions.create(**long))
        assert "ContextWindowExceededError" in str(error), error


process = start()
try:
    run()
finally:
    process.terminate()
    process.wait(30)

"""Calls in the forms of families, and an end of several tokens, by the real engine and OpenAI's client.

The model has never learned these forms: its template is replaced, and tokens that nobody uses are renamed.
What is tested is that a call is forced in the template's own form, and read from it.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest

from bench.load import Service
from tests.support import PATIENCE_S, ROOT
from tests.support.system import Up
from tests.support.thinking import changed_artifact
from tests.support.tool_form import FORMS

# Tokens of SmolLM2 that nobody uses.
UNUSED = ("<jupyter_output>", "<jupyter_script>", "<jupyter_code>", "<jupyter_text>", "<jupyter_start>")
CITY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Paris", "Düren"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "wet": {"type": "boolean"},
    },
    "required": ["city", "days", "wet"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": CITY}},
    {"type": "function", "function": {"name": "now"}},
]
ONLY: Any = {"type": "function", "function": {"name": "weather"}}
FAMILIES = ("Qwen's", "Granite's", "Qwen Coder's", "LFM's")


@contextmanager
def serving(model: Path, folder: Path, template: str, renamed: dict[str, str]) -> Iterator[Service]:
    changed_artifact(model, folder / "artifacts", template, renamed)
    service = Service(folder / "artifacts", folder / "api.log", {"API_MAX_NUM_SEQS": "8"})
    try:
        service.start()
        yield service
    finally:
        service.stop()


def client(service: Service) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0, timeout=2 * PATIENCE_S)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_call_is_forced_in_the_form_of_the_template_and_read_from_it(
    first_up: Up, tmp_path: Path, family: str
) -> None:
    model = (first_up.artifacts / "models" / "current").resolve()
    form = FORMS[family]
    assert form.found
    with serving(model, tmp_path, form.template, dict(zip(UNUSED, form.controls, strict=False))) as service:
        api = client(service)
        ask: dict[str, Any] = {"model": service.model, "tools": TOOLS, "tool_choice": ONLY, "temperature": 0}
        ask["messages"] = [{"role": "user", "content": "What will the weather be in Paris?"}]
        whole = api.chat.completions.create(**ask, logprobs=True).choices[0]
        assert whole.finish_reason == "tool_calls" and not whole.message.content
        [call] = whole.message.tool_calls or []
        assert call.type == "function" and call.function.name == "weather"
        jsonschema.validate(json.loads(call.function.arguments), CITY)
        tokens = whole.logprobs.content if whole.logprobs else None
        spelled = "".join(token.token for token in tokens or [])
        assert form.found[1] + "weather" in spelled and form.found[2] in spelled, "the template's own form"

        with api.chat.completions.stream(**ask) as stream:
            streamed = stream.get_final_completion().choices[0]
        [again] = streamed.message.tool_calls or []
        assert (again.function.name, streamed.finish_reason) == ("weather", "tool_calls")
        # Not the same arguments: the model does not know them, and near-ties fall either way.
        jsonschema.validate(json.loads(again.function.arguments), CITY)

        ask["messages"] += [whole.message, {"role": "tool", "tool_call_id": call.id, "content": "11 C"}]
        more = api.chat.completions.create(**ask | {"tool_choice": "none"}, max_tokens=4)
        assert more.choices[0].finish_reason in ("length", "stop")


def test_an_end_of_several_tokens_ends_answers_and_is_described(first_up: Up, tmp_path: Path) -> None:
    model = (first_up.artifacts / "models" / "current").resolve()
    tokenizer = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    # A character that is a token, and two of which are two tokens.
    marks = [c for c in map(chr, range(0x21, 0x7F)) if not c.isalnum()]
    character = next(c for c in marks if c in tokenizer and c * 2 not in tokenizer)
    template = FORMS["without tools"].template.replace("<|im_end|>", character * 2)
    with serving(model, tmp_path, template, {}) as service:
        ask: dict[str, Any] = {"model": service.model, "logit_bias": {str(tokenizer[character]): 100}}
        ask |= {"messages": [{"role": "user", "content": "Name a color."}], "max_tokens": 9, "temperature": 0}
        answer = client(service).chat.completions.create(**ask)
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("", "stop")
        assert answer.usage and answer.usage.completion_tokens == 2
        ignoring = client(service).chat.completions.create(**ask, extra_body={"ignore_eos": True})
        assert ignoring.choices[0].message.content == character * 9
        checked = subprocess.run(
            [str(ROOT / ".venv/api/bin/python"), "-m", "api", "check"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "ARTIFACTS_DIR": str(tmp_path / "artifacts")},
        )  # fmt: skip
        assert f"the template ends answers with {character * 2}\n" in checked.stdout, checked.stderr

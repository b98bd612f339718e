"""The command line program `llm`."""

import json
import os
import sys
from pathlib import Path

from steps import CITY, COLOR, KEY, MODEL, TOO_LONG, V1, command, refused, step

folder = Path(os.environ["HOME"], "llm")
folder.mkdir(exist_ok=True)
models = [{"model_id": name, "model_name": model, "api_base": V1, "api_key_name": "zoo",
           "supports_tools": True, "supports_schema": True}
          for name, model in (("tuned", MODEL), ("wrong", "no"))]  # fmt: skip
(folder / "extra-openai-models.yaml").write_text(json.dumps(models))  # JSON is YAML
(folder / "keys.json").write_text(json.dumps({"zoo": KEY}))
FUNCTION = "def weather():\n    'The weather.'\n    return '11 C'"


def llm(*arguments: str, model: str = "tuned") -> str:
    program = str(Path(sys.executable).with_name("llm"))
    return command(program, "-m", model, "-o", "max_tokens", "32", *arguments, LLM_USER_PATH=str(folder))


@step
def plain() -> None:
    assert llm("--no-stream", "-s", "Be brief.", COLOR).strip()


@step
def stream() -> None:
    assert llm(COLOR).strip()


@step
def tools() -> None:
    assert llm("--functions", FUNCTION, "--no-stream", COLOR).strip()


@step
def schema() -> None:
    assert "city" in json.loads(llm("--schema", json.dumps(CITY), COLOR))


@step
def turns() -> None:
    for _ in range(3):
        assert llm("-c", COLOR).strip()


@step
def too_long() -> None:
    assert "maximum context length" in str(refused(AssertionError, lambda: llm(TOO_LONG)))


@step
def unknown_model() -> None:
    assert "404" in str(refused(AssertionError, lambda: llm(COLOR, model="wrong")))

"""guidellm: a synchronous load of a few requests by chat and by text."""

import json
import os
import sys
from pathlib import Path

from steps import KEY, MODEL, TOKENIZER, URL, command, step


def load(path: str) -> None:
    result = Path(os.environ["HOME"], "guidellm.json")
    printed = command(
        str(Path(sys.executable).with_name("guidellm")), "run",
        "--backend", f"kind=openai_http,target={URL},model={MODEL},api_key={KEY},request_format={path}",
        "--tokenizer", f"kind=huggingface_auto,model={TOKENIZER}",
        "--data", "kind=synthetic_text,prompt_tokens=32,output_tokens=8", "--profile", "kind=synchronous",
        "--constraint", "kind=max_requests,count=3", "--output", f"kind=json,path={result}",
        "--disable-console-interactive",
    )  # fmt: skip
    [benchmark] = json.loads(result.read_text())["benchmarks"]
    requests = benchmark["requests"]
    assert len(requests["successful"]) == 3 and not requests["errored"], printed[-1500:]


@step
def stream() -> None:
    load("/v1/chat/completions")


@step
def text() -> None:
    load("/v1/completions")

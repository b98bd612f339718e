"""lm-eval: multiple choice by /v1/completions (echo and logprobs), and an exact match by chat."""

import json
import os
import sys
from pathlib import Path

from steps import KEY, MODEL, TOKENIZER, V1, command, step

folder = Path(os.environ["HOME"], "lm_eval")
folder.mkdir(exist_ok=True)
rows = [{"question": f"{n} and {n} is", "choices": [str(2 * n), "many"], "answer": 0} for n in range(4)]
(folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
DATA = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test", "doc_to_text": "{{question}}"}  # fmt: skip
CHOICES = {"task": "choices", "output_type": "multiple_choice", "doc_to_choice": "{{choices}}",
           "doc_to_target": "answer", "metric_list": [{"metric": "acc"}]}  # fmt: skip
EXACT = {"task": "exact", "output_type": "generate_until", "doc_to_target": "{{choices[0]}}",
         "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
         "metric_list": [{"metric": "exact_match"}]}  # fmt: skip
for task in (CHOICES, EXACT):
    (folder / f"{task['task']}.yaml").write_text(json.dumps({**DATA, **task}))  # JSON is YAML


def measure(model: str, path: str, task: str, *arguments: str) -> None:
    options = f"model={MODEL},base_url={V1}/{path},tokenizer={TOKENIZER},tokenizer_backend=huggingface"
    command(
        sys.executable, "-m", "lm_eval", "run", "--model", model, "--model_args", options, "--tasks", task,
        "--include_path", str(folder),
        "--output_path", str(folder / model / task), *arguments, OPENAI_API_KEY=KEY,
    )  # fmt: skip
    [found] = (folder / model / task).rglob("results_*.json")
    assert json.loads(found.read_text())["n-samples"][task]["effective"] == 4


@step
def multiple_choice() -> None:
    measure("local-completions", "completions", "choices")


@step
def text() -> None:
    measure("local-completions", "completions", "exact")


@step
def chat() -> None:
    measure("local-chat-completions", "chat/completions", "exact", "--apply_chat_template")

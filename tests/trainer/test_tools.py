"""Rows with functions are rendered as the API renders them, and trained on what it reads as calls."""

import importlib.resources
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support import prompts
from tests.support.tool_form import CHATML, FORMS, LAID_OUT, MESSAGES, RENDERED, TOOLS, WRITTEN
from trainer.cli import main
from trainer.data.conversation import Conversation
from trainer.data.parse import Reading, parse_row
from trainer.data.shapes import RowError
from trainer.data.tokenize import ChatTokenizer, TokenRow, answer_runs
from trainer.data.tool_template import with_tools

TAGGED = (
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Düren", "days": [1, {"x": null}]}}\n</tool_call>'
)
END = "<|im_end|>"


def chat_of(template: str, extended: bool = False) -> ChatTokenizer:
    """A chat tokenizer with a template of ours, by its family, or one that trl ships, by its file."""
    controls = FORMS[template].controls if template in FORMS else ()
    template = FORMS[template].template if template in FORMS else template
    if template.endswith(".jinja"):
        template = (importlib.resources.files("trl") / "chat_templates" / template).read_text()
    made = prompts.tokenizer(template)
    made.add_special_tokens({"bos_token": "<s>", "additional_special_tokens": list(controls)})
    chat = ChatTokenizer(made)
    if extended:
        made.chat_template = with_tools(template, not chat.template.traits.system)
    return ChatTokenizer(made)


def conversation(
    *messages: dict[str, Any], tools: Any = TOOLS, reading: Reading | None = None
) -> Conversation:
    return parse_row({"messages": list(messages), "tools": tools}, "s", reading=reading or Reading())


def trained(chat: ChatTokenizer, row: TokenRow) -> list[str]:
    return [str(chat.tokenizer.decode(row.input_ids[begin:end])) for begin, end in answer_runs(row.labels)]


def whole(chat: ChatTokenizer, row: TokenRow) -> str:
    return str(chat.tokenizer.decode(row.input_ids))


LAST = {"role": "assistant", "content": "Noon."}
ONE_CALL = {**MESSAGES[2], "content": "", "tool_calls": MESSAGES[2]["tool_calls"][:1]}


@pytest.mark.parametrize("family", FORMS)
def test_how_a_template_writes_calls_is_found_by_trying_it(family: str) -> None:
    form, expected = chat_of(family).template.tool_form, FORMS[family]
    written = form and form.written
    assert (written and (written.style, written.begin, written.tail)) == expected.found
    if form and written:
        assert (form.as_text, form.with_ids, written.end) == (expected.as_text, expected.with_ids, END)


def test_an_extended_template_writes_the_words_of_the_api() -> None:
    chat = chat_of(CHATML, extended=True)
    row = chat.row(conversation(*MESSAGES, LAST))
    assert whole(chat, row) == f"{WRITTEN}Noon.{END}\n"
    other = TAGGED.replace("weather", "now").partition('"arguments": ')[0] + '"arguments": {}}\n</tool_call>'
    assert trained(chat, row) == [f"Let me see.\n{TAGGED}\n{other}{END}", f"It rains.{END}", f"Noon.{END}"]
    assert (row.question, [turn["role"] for turn in row.earlier or []]) == (
        "And the time?", ["user", "assistant", "tool", "tool", "assistant"],
    )  # fmt: skip


def test_rows_without_tools_have_the_same_tokens_in_an_extended_template() -> None:
    plain = conversation(*MESSAGES[:2], LAST, tools=None)
    assert chat_of(CHATML, extended=True).row(plain) == chat_of(CHATML).row(plain)


@pytest.mark.parametrize("family", LAID_OUT)
def test_rows_are_rendered_as_the_api_renders_them(family: str) -> None:
    chat = chat_of(family)
    row = chat.row(conversation(*MESSAGES, LAST))
    assert whole(chat, row) == f"{RENDERED[family]['prompt']}Noon.{END}\n"
    assert trained(chat, row) == [f"{RENDERED[family]['calls']}{END}", f"It rains.{END}", f"Noon.{END}"]


@pytest.mark.parametrize("file", ["qwen2_5.jinja", "llama3_2.jinja", "lfm2_v2.jinja"])
def test_a_published_template_writes_tools_itself_and_answers_are_trained(file: str) -> None:
    chat = chat_of(file)
    chat.tokenizer.add_special_tokens({"additional_special_tokens": ["<|eot_id|>"]})
    chat = ChatTokenizer(chat.tokenizer)
    assert chat.template.tool_form
    row = chat.row(conversation(*MESSAGES[:2], ONE_CALL, MESSAGES[3], *MESSAGES[5:], LAST))
    call, *texts = trained(chat, row)
    assert [text.replace("<|eot_id|>", END).rpartition("\n")[2] for text in texts] == [
        f"It rains.{END}", f"Noon.{END}",
    ]  # fmt: skip
    assert "weather" in call and "Düren" in call and '[1, {"x": null}]' in call
    assert all(word not in text for text in (call, *texts) for word in ("Now, in", "Rain in", "And the time"))
    assert "Now, in °C." in whole(chat, row) and "Rain" in whole(chat, row)


@pytest.mark.parametrize(
    ("kinds", "count"), [(["tool_calls"], 1), (["assistant"], 2), (["assistant", "tool_calls"], 3)]
)
def test_labels_are_on_the_kinds_of_answers_that_train_on_names(kinds: Any, count: int) -> None:
    chat = chat_of(CHATML, extended=True)
    found = trained(chat, chat.row(conversation(*MESSAGES, LAST, reading=Reading(train_on=kinds))))
    assert len(found) == count and ("<tool_call>" in found[0]) == ("tool_calls" in kinds)


def test_a_base_without_system_messages_has_the_tools_in_the_first_question() -> None:
    chat = chat_of(prompts.STRICT, extended=True)
    row = chat.row(conversation(*MESSAGES[1:], LAST))
    assert whole(chat, row).startswith("<|im_start|>user\nYou can call functions.")
    assert "</tool_call>\n\nRain in Düren?<|im_end|>" in whole(chat, row)
    with pytest.raises(RowError, match="System role not supported"):
        chat.row(conversation(*MESSAGES, LAST))


def test_tools_for_a_template_that_leaves_them_out_are_no_row() -> None:
    with pytest.raises(RowError, match="no place for tools"):
        chat_of(CHATML).row(conversation(*MESSAGES, LAST))


@pytest.mark.parametrize("family", ["without tools", "Qwen's", "arguments as text"])
@pytest.mark.parametrize("place", ["argument", "name of an argument", "result", "description"])
def test_control_tokens_in_tools_and_calls_stay_text(family: str, place: str) -> None:
    chat = chat_of(family, extended=FORMS[family].found is None)
    messages, tools = json.loads(json.dumps(MESSAGES)), json.loads(json.dumps(TOOLS))
    function = messages[2]["tool_calls"][0]["function"]
    if place == "argument":
        function["arguments"] = json.dumps({"city": END})
    elif place == "name of an argument":
        function["arguments"] = json.dumps({END: "Düren"})
    elif place == "result":
        messages[3]["content"] = END
    else:
        tools[0]["function"]["description"] = END
    end = chat.tokenizer.convert_tokens_to_ids(END)
    row = chat.row(conversation(*messages, LAST, tools=tools))
    assert row.input_ids.count(end) == chat.row(conversation(*MESSAGES, LAST)).input_ids.count(end)
    assert END in chat.tokenizer.decode([token for token in row.input_ids if token != end])


@pytest.fixture
def run(config_file: Path, tmp_path: Path, base_directory: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a verb over rows with the tiny base and a template; returns what was printed."""

    def run(verb: str, template: str, rows: list[dict[str, Any]]) -> str:
        base = tmp_path / "base"
        shutil.copytree(base_directory, base)
        shape = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps(shape | {"max_position_embeddings": 1024}))
        (base / "chat_template.jinja").write_text(template)
        (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = (
            f"data.source={tmp_path / 'own.jsonl'}", f"base.path={base}", "data.general=null",
            "data.max_length=1024", "train.tokens_per_step=1024", "sweep.ranks=[2]", "train.max_steps=2",
        )  # fmt: skip
        flags = [part for value in settings for part in ("--set", value)]
        artifacts = str(tmp_path / "artifacts")
        status = main([verb, "--config", str(config_file), "--artifacts", artifacts, *flags])
        printed = "".join(capsys.readouterr())
        assert status == 0, printed
        return printed

    return run


def rows(beside: str = "") -> list[dict[str, Any]]:
    call = {"type": "function", "function": {"name": "now", "arguments": "{}"}}
    answers = [{"role": "assistant", "content": beside, "tool_calls": [call]}, {**LAST}]
    return [
        {"messages": [{"role": "user", "content": f"q{i}"}, answers[i % 2]], "tools": TOOLS}
        for i in range(40)
    ]


def test_an_artifact_that_was_trained_on_calls_has_a_template_that_writes_them(
    run: Any, tmp_path: Path
) -> None:
    printed = run("run", CHATML, rows())
    assert "this chat template does not write tools and calls as the API reads them" in printed
    artifact = (tmp_path / "artifacts/models/current").resolve()
    shipped = (artifact / "chat_template.jinja").read_text()
    assert shipped.endswith(CHATML) and shipped.startswith("{%- set tools_in_question = false -%}\n")
    assert chat_of(shipped).template.tool_form
    samples = json.loads((artifact / "samples.json").read_text())
    assert {sample["reference"] for sample in samples} <= {
        "Noon.", '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
    }  # fmt: skip


def test_text_that_a_template_leaves_out_beside_a_call_is_counted(run: Any, tmp_path: Path) -> None:
    drops = FORMS["Llama's"].template.replace("assistant\n' + (m.content or '')", "assistant\n'")
    printed = run("prepare", drops, rows(beside="Let me see."))
    assert "20 rows have text beside a call, which this chat template leaves out" in printed
    (report,) = tmp_path.glob("artifacts/data/*/report.json")
    assert (report.parent / "chat_template.jinja").read_text() == drops
    assert any("text beside a call" in remark for remark in json.loads(report.read_text())["remarks"])

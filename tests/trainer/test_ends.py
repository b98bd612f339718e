"""What ends an answer is found from the template, learned, and written into the artifact."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.support.ends import CASES, CHANNELS, tokenizer_of
from trainer.cli import main
from trainer.data.conversation import Conversation, Message
from trainer.data.tokenize import ChatTokenizer, answer_runs
from trainer.errors import BaseModelError
from trainer.generation import generate
from trainer.ship.stops import set_stop_tokens, stop_tokens, template_ends

ENDING = [family for family, case in CASES.items() if case.ids or case.texts]


def chat_of(family: str) -> ChatTokenizer:
    return ChatTokenizer(tokenizer_of(CASES[family].template, CASES[family].controls))


def conversation(*texts: str) -> Conversation:
    roles = ("user", "assistant") * len(texts)
    return Conversation(tuple(Message(r, t) for r, t in zip(roles, texts, strict=False)), "made")  # type: ignore


@pytest.mark.parametrize("family", ENDING)
def test_what_ends_an_answer_is_what_the_template_puts_behind_it(family: str) -> None:
    case = CASES[family]
    tokenizer = tokenizer_of(case.template, case.controls)
    ends = template_ends(tokenizer)
    assert (tuple(tokenizer.convert_ids_to_tokens(list(ends.ids))), ends.texts) == (case.ids, case.texts)


@pytest.mark.parametrize("family", ENDING)
def test_the_end_of_an_answer_is_learned(family: str) -> None:
    chat, case = chat_of(family), CASES[family]
    (made,) = chat.rows([conversation("q", "one", "r", "two")])
    learned = [
        str(chat.tokenizer.decode(row.input_ids[begin:end])).strip()
        for row in made.rows
        for begin, end in answer_runs(row.labels)
    ]
    assert learned[-1] == "two" + (case.learned or (*case.ids, *case.texts)[0])
    assert learned[0].startswith("one" + (*case.ids, *case.texts)[0])


def test_answers_in_channels_and_without_an_end_are_refused() -> None:
    with pytest.raises(BaseModelError, match="in channels"):
        template_ends(
            tokenizer_of(CHANNELS, ("<|return|>", "<|start|>", "<|channel|>", "<|message|>", "<|end|>"))
        )
    with pytest.raises(BaseModelError, match="cannot end its turns"):
        template_ends(tokenizer_of(CASES["none"].template, CASES["none"].controls))


@pytest.mark.slow
def test_an_end_of_several_tokens_is_learned_ends_answers_and_is_shipped(
    tmp_path: Path, tiny_model: LlamaForCausalLM
) -> None:
    chat, end = chat_of("ChatML for a tokenizer that does not know it"), "<|im_end|>"
    model: Any = copy.deepcopy(tiny_model)
    model.resize_token_embeddings(len(chat.tokenizer))
    row = chat.row(conversation("q", "ok"))
    batch = {"input_ids": torch.tensor([row.input_ids]), "labels": torch.tensor([row.labels])}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    prompt = chat.prompt_ids([Message("user", "q")])
    [cut], [whole] = (generate(model, [prompt], chat.pad_id, 24, text_ends=e) for e in (chat.text_ends, None))
    assert cut.stopped and not whole.stopped
    assert chat.tokenizer.decode(cut.token_ids) == f"ok{end}"
    assert chat.answer_text(cut.token_ids) == chat.answer_text(whole.token_ids) == "ok"

    set_stop_tokens(model, chat.tokenizer)
    model.save_pretrained(tmp_path)
    assert stop_tokens(tmp_path, chat.tokenizer)[-1] == end
    shipped = LlamaForCausalLM.from_pretrained(tmp_path)
    out = shipped.generate(
        torch.tensor([prompt]), tokenizer=chat.tokenizer, max_new_tokens=24, do_sample=False
    )
    assert chat.tokenizer.decode(out[0, len(prompt) :]) == f"ok{end}"


@pytest.mark.slow
def test_a_run_with_an_end_of_several_tokens_ships_it_and_shows_it_nowhere(
    tmp_path: Path, base_directory: Path, config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, end = tmp_path / "base", "</turn>"
    shutil.copytree(base_directory, base)
    template = (base / "chat_template.jinja").read_text()
    (base / "chat_template.jinja").write_text(template.replace("<|im_end|>", end))
    flags = [
        "--artifacts",
        str(tmp_path / "artifacts"),
        "--set",
        f"base.path={base}",
        "--set",
        "sweep.ranks=[2]",
    ]
    assert main(["run", "--config", str(config_file), *flags]) == 0, capsys.readouterr()
    artifact = (tmp_path / "artifacts/models/current").resolve()
    assert json.loads((artifact / "generation_config.json").read_text())["stop_strings"] == [end]
    samples = json.loads((artifact / "samples.json").read_text())
    assert samples and not any(end in sample[name] for sample in samples for name in ("reference", "tuned"))
    assert main(["check", "--config", str(config_file), *flags]) == 0, capsys.readouterr()

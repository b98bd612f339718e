"""Rows of one turn become conversations, and the base's own answers within them keep its distribution."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from pydantic import ValidationError
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from trainer import base_model
from trainer.config import RunConfig
from trainer.config_data import ChatsConfig, DataConfig, GeneralChatConfig
from trainer.config_file import load
from trainer.data.chats import join_for_training, join_held_out
from trainer.data.conversation import Conversation, Message
from trainer.data.general import OwnAnswer, aim, same_as_text
from trainer.data.prepare import Prepared, prepare
from trainer.data.tokenize import IGNORED, ChatTokenizer, TokenRow, answer_runs
from trainer.engines import plain
from trainer.fit.arm import Arm, Setting
from trainer.fit.run.callbacks import read_log
from trainer.fit.run.parts import Parts
from trainer.fit.run.train import train
from trainer.fit.run.world import World
from trainer.generation import Answer, generate
from trainer.objective import sft

CHATS = ChatsConfig(turns=3, general_share=0.4)


def card(number: int) -> Conversation:
    return Conversation((Message("user", f"Q{number}"), Message("assistant", f"A{number}")), "cards")


def own(number: int, stopped: bool = True) -> OwnAnswer:
    """An answer of the byte-level tokenizer: one token a byte, 2 ends it."""
    ids = [byte for byte in range(40, 43)] + ([2] if stopped else [])
    return OwnAnswer(f"P{number}", Answer(ids, stopped), "")


CARDS = [card(number) for number in range(60)]


def test_every_row_is_taught_once_in_conversations_of_one_to_three_turns() -> None:
    made = list(join_for_training(CARDS, [own(0), own(1)], CHATS, 7))
    taught = [m.content for c in made for m in c.messages if m.role == "assistant" and m.content]
    assert sorted(taught) == sorted(m.messages[1].content for m in CARDS)
    assert {len(c.messages) for c in made} == {2, 4, 6}
    kinds = {tuple(n is None for n in c.own) or (True,) * (len(c.messages) // 2) for c in made}
    assert {(True, True), (True, False), (False, True)} <= kinds


def test_the_share_of_general_turns_is_the_one_that_was_asked_for() -> None:
    turns = [
        bool(c.own) and c.own[i] is not None
        for c in join_for_training(CARDS * 20, [own(0)], CHATS, 3)
        for i in range(len(c.messages) // 2)
    ]
    assert sum(turns) / len(turns) == pytest.approx(0.4, abs=0.05)


def test_a_row_of_several_turns_or_with_a_system_prompt_stays_as_it_is() -> None:
    long = Conversation(card(0).messages + card(1).messages, "s")
    system = Conversation((Message("system", "Be brief."), *card(2).messages), "s")
    for made in (
        list(join_for_training([long, system], [], CHATS, 1)),
        list(join_held_out([long, system], CHATS)),
    ):
        assert sorted(c.row_id for c in made) == sorted([long.row_id, system.row_id])


def test_held_out_conversations_have_every_turn_from_the_data() -> None:
    made = list(join_held_out(CARDS, CHATS))
    assert [len(c.messages) for c in made] == [6] * 20 and not any(c.own for c in made)
    assert [m.content for c in made for m in c.messages] == [m.content for c in CARDS for m in c.messages]


def test_an_answer_follows_the_base_and_a_cut_one_has_no_end_to_learn(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    chat = ChatTokenizer(tokenizer)
    ids = chat.tokenizer("xyz", add_special_tokens=False)["input_ids"]
    top = [[ids[0], 5], [ids[1], 5], [ids[2], 5]]
    cut = OwnAnswer("Q", Answer(ids, False, top, [[-0.1, -3.0]] * 3), "xyz")
    messages = (*card(0).messages, Message("user", "Q"), Message("assistant", "xyz"), *card(1).messages)
    row = chat.row(Conversation(messages, "s"))
    aimed = aim(row, (None, 0, None), [cut])
    (first, second, third) = answer_runs(row.labels)
    assert aimed.top_ids is not None and aimed.top_logprobs is not None
    assert aimed.top_ids[second[0] : second[0] + 3] == top
    assert sum(map(bool, aimed.top_ids)) == 3
    assert aimed.labels[second[1] - 1] == IGNORED and row.labels[second[1] - 1] == tokenizer.eos_token_id
    assert [aimed.labels[a:b] for a, b in (first, third)] == [row.labels[a:b] for a, b in (first, third)]


def test_an_answer_whose_text_has_other_tokens_stays_out_of_conversations(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    chat = ChatTokenizer(tokenizer)
    ids = chat.tokenizer("xyz", add_special_tokens=False)["input_ids"]
    good = OwnAnswer("Q", Answer([*ids, 2], True), "xyz")
    whole = OwnAnswer("Q", Answer(ids, False), "xyz")
    other = OwnAnswer("Q", Answer([*ids, ids[0], 2], True), "xyz")
    assert same_as_text([good, other, whole], chat) == [good, whole]


@pytest.fixture
def chatty(config_values: dict[str, Any], tmp_path: Path) -> RunConfig:
    config_values["data"] |= {"chats": {"turns": 2, "general_share": 0.5}, "max_length": 96}
    config_values["data"]["general"] |= {"top_tokens": 4, "max_new_tokens": 8}
    return RunConfig.model_validate(config_values)


@pytest.fixture(autouse=True)
def readable_answers(monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerFast) -> None:
    """A random model answers in broken bytes, which no text gives again: here it says xyz."""

    def answers(config: GeneralChatConfig, *_: Any) -> tuple[list[OwnAnswer], list[OwnAnswer]]:
        listed = config.top_tokens or 0
        ids = tokenizer("xyz", add_special_tokens=False)["input_ids"]
        answer = Answer(ids, False, [list(range(listed))] * 3, [[-2.0] * listed] * 3)
        made = [OwnAnswer(f"M{i}", answer, "xyz") for i in range(config.test_prompts + config.train_prompts)]
        return made[config.test_prompts :], made[: config.test_prompts]

    monkeypatch.setattr("trainer.data.prepare.answer_prompts", answers)


def prepared_of(config: RunConfig, folder: Path) -> Prepared:
    return prepare(config, base_model.fetch(config.base, folder), folder)


def test_prepared_conversations_hold_what_training_and_evaluation_need(
    chatty: RunConfig, tmp_path: Path
) -> None:
    prepared = prepared_of(chatty, tmp_path)
    test, general, followup = (prepared.rows(name) for name in ("test", "general", "followup"))
    assert {len(answer_runs(row.labels)) for row in test} == {2}
    assert len(general) == len(followup) == 2
    for alone, after in zip(general, followup, strict=True):
        assert [x for x in alone.labels if x != IGNORED] == [x for x in after.labels if x != IGNORED]
        assert len(after.input_ids) > len(alone.input_ids) and len(answer_runs(after.labels)) == 1
    train = prepared.rows("train")
    followed = [row for row in train if row.top_ids and any(row.top_ids)]
    assert followed
    for row in followed:
        assert row.top_ids is not None and len(row.top_ids) == len(row.input_ids)
        assert all(label != IGNORED for label, top in zip(row.labels, row.top_ids, strict=True) if top)


def test_other_probabilities_are_other_rows(chatty: RunConfig, tmp_path: Path) -> None:
    general = chatty.data.general
    assert general
    fewer = general.model_copy(update={"top_tokens": 2})
    other = chatty.model_copy(update={"data": chatty.data.model_copy(update={"general": fewer})})
    one, two = prepared_of(chatty, tmp_path), prepared_of(other, tmp_path)
    assert one.directory != two.directory and one.fingerprint != two.fingerprint


def test_top_tokens_are_the_most_likely_ones_at_each_place(tiny_model: LlamaForCausalLM) -> None:
    prompts = [[5, 9, 30], [7, 8]]
    for prompt, answer in zip(prompts, generate(tiny_model, prompts, 0, 4, 1, top_tokens=3), strict=True):
        assert len(answer.top_ids) == len(answer.token_ids)
        with torch.inference_mode():
            logits = tiny_model(torch.tensor([prompt + answer.token_ids])).logits[0]
        wanted = functional.log_softmax(logits[len(prompt) - 1 : -1].float(), -1).topk(3)
        assert torch.tensor(answer.top_ids).tolist() == wanted.indices.tolist()
        torch.testing.assert_close(torch.tensor(answer.top_logprobs), wanted.values, atol=2e-4, rtol=0)


def packed_row(model: LlamaForCausalLM, listed: int) -> dict[str, Any]:
    """Two documents: labels in one, the model's own probabilities in the other."""
    first, second = [5, 9, 30, 31], [7, 8, 40, 41, 42]
    with torch.inference_mode():
        logprobs = functional.log_softmax(model(torch.tensor([second])).logits[0].float(), -1).topk(listed)
    nothing: list[Any] = [[], [], [], []]
    tops = [[[], [], *table[1:-1].tolist()] for table in (logprobs.indices, logprobs.values)]
    rows = [
        TokenRow(first, [IGNORED, IGNORED, 30, 31], "", "", nothing, nothing),
        TokenRow(second, [IGNORED, IGNORED, 40, 41, 42], "", "", *tops),
    ]
    data = Dataset.from_list([{name: getattr(row, name) for name in sft.COLUMNS} for row in rows])
    (packed,) = sft.pack(data, 16)
    return dict(packed)


@pytest.mark.parametrize("listed", [2, 200])
def test_the_base_itself_diverges_by_nothing_and_labels_still_count(
    tiny_model: LlamaForCausalLM, listed: int
) -> None:
    row = packed_row(tiny_model, listed)
    hard = {**row, "labels": [x if x in (30, 31) else IGNORED for x in row["labels"]]}
    labels_only = {k: v for k, v in hard.items() if not k.startswith("top")}
    with torch.inference_mode():
        both, alone = (
            float(sft.loss(plain, tiny_model, sft.collate([packed]), torch.tensor(1.0)))
            for packed in (row, labels_only)
        )
    assert both == pytest.approx(alone, abs=1e-3)


def test_divergence_is_that_of_the_whole_vocabulary_where_all_is_listed() -> None:
    generator = torch.Generator().manual_seed(1)
    base, ours = (torch.randn(3, 12, generator=generator) for _ in range(2))
    wanted = functional.log_softmax(base, -1).topk(12)
    found = plain._divergence(ours, wanted.indices, wanted.values)
    whole = functional.kl_div(
        functional.log_softmax(ours, -1), functional.log_softmax(base, -1), log_target=True, reduction="none"
    ).sum(1)
    torch.testing.assert_close(found, whole, atol=1e-4, rtol=1e-3)
    fewer = functional.log_softmax(base, -1).topk(4)
    assert (plain._divergence(ours, fewer.indices, fewer.values) <= whole + 1e-4).all()


def test_general_turns_without_prompts_are_refused(config_values: dict[str, Any]) -> None:
    data = {**config_values["data"], "general": None, "chats": {"turns": 2, "general_share": 0.3}}
    with pytest.raises(ValidationError, match=r"needs `general\.train_prompts`"):
        DataConfig.model_validate(data)


def test_an_engine_that_ignores_probabilities_is_refused(chatty: RunConfig, config_file: Path) -> None:
    overrides = ["data.general.top_tokens=4", "train.engine=compiled"]
    with pytest.raises(Exception, match=r"top_tokens` needs `train\.engine: plain`"):
        load(config_file, overrides)


def test_the_same_seed_joins_the_same_conversations() -> None:
    made = [list(itertools.islice(join_for_training(CARDS, [own(0)], CHATS, 5), 9)) for _ in range(2)]
    assert made[0] == made[1]


def test_the_parts_of_a_packed_row_add_up_to_its_loss(tiny_model: LlamaForCausalLM) -> None:
    row = packed_row(tiny_model, 4)
    row["top_logprobs"] = [[value - 1 for value in top] for top in row["top_logprobs"]]  # another base
    inputs, parts = sft.collate([row]), Parts()
    with torch.inference_mode():
        total = sft.loss(plain, tiny_model, inputs, torch.tensor(1.0))
    parts.add(inputs, total)
    means = parts.means(World("cpu"))
    assert means["general_loss"] > 0.001
    assert 2 * means["task_loss"] + 3 * means["general_loss"] == pytest.approx(float(total), rel=1e-5)
    assert parts.means(World("cpu")) == {}, "each log begins anew"


def test_a_run_logs_both_parts_and_keeps_them_as_curves(chatty: RunConfig, tmp_path: Path) -> None:
    base = base_model.fetch(chatty.base, tmp_path)
    arm = Arm(Setting(2, 0.01), 7)
    run = train(chatty, base, prepare(chatty, base, tmp_path), arm, 6, tmp_path)
    log = [line for line in read_log(next(tmp_path.glob("runs/*/*/log.jsonl"))) if "loss" in line]
    for name in ("task", "general"):
        curve = [[line["step"], line[f"{name}_loss"]] for line in log if f"{name}_loss" in line]
        assert curve and run.record[f"{name}_curve"] == curve
    low, high = (
        [pick(line[name] for name in ("task_loss", "general_loss") if name in line) for line in log]
        for pick in (min, max)
    )
    assert all(a - 1e-4 <= line["loss"] <= b + 1e-4 for a, line, b in zip(low, log, high, strict=True))

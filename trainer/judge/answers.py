"""Let a model answer the test prompts and the fixed list of general ones, and show what it said.

A general prompt may have more than one turn: each model then gets its own answers as the history. The last
answer of a test row follows the row's own earlier turns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainer.config import EvaluateConfig
from trainer.data.conversation import Message
from trainer.data.tokenize import ChatTokenizer, TokenRow, answer_runs
from trainer.generation import Answer, generate
from trainer.judge.endings import Place


@dataclass(frozen=True, slots=True)
class Answers:
    """samples: to the last questions of test rows. side_by_side: to each question of each conversation.

    written: the test answers that were asked for.
    """

    samples: list[Answer]
    side_by_side: list[list[str]]
    written: list[Answer]


def answer(
    model: Any,
    chat: ChatTokenizer,
    config: EvaluateConfig,
    test: Sequence[TokenRow],
    conversations: Sequence[Sequence[str]],
    places: Sequence[Place] = (),
) -> Answers:
    """Let one model answer greedily. All prompts of a turn are one batch.

    places: answers of `test` to write beside the samples.
    """
    shown = [Place(i, *answer_runs(row.labels)[-1]) for i, row in enumerate(test[: config.samples])]
    wanted = list(dict.fromkeys([*shown, *places]))
    prompts = [test[place.row].input_ids[: place.begin] for place in wanted]
    written = generate(model, prompts, chat.pad_id, config.max_new_tokens, text_ends=chat.text_ends)
    answer_at = dict(zip(wanted, written, strict=True))
    histories: list[list[Message]] = [[] for _ in conversations]
    for turn in range(max(map(len, conversations))):
        asked = [pair for pair in zip(histories, conversations, strict=True) if turn < len(pair[1])]
        for history, questions in asked:
            history.append(Message("user", questions[turn]))
        prompts = [chat.prompt_ids(history) for history, _ in asked]
        found = generate(model, prompts, chat.pad_id, config.prompt_tokens, text_ends=chat.text_ends)
        for (history, _), own in zip(asked, found, strict=True):
            history.append(Message("assistant", text_of(chat, own.token_ids)))
    return Answers(
        [answer_at[place] for place in shown],
        [[m.content for m in history[1::2]] for history in histories],
        [answer_at[place] for place in places],
    )


def samples(
    rows: Sequence[TokenRow], before: Answers, after: Answers, chat: ChatTokenizer
) -> list[dict[str, Any]]:
    """Return each test prompt with its reference and the answers of both models.

    `earlier`: the row's turns before it, as `messages` of OpenAI's API.
    """
    return [
        {
            "earlier": row.earlier or [],
            "prompt": row.question,
            "reference": text_of(chat, row.input_ids[answer_runs(row.labels)[-1][0] :]),
            "base": text_of(chat, base.token_ids),
            "tuned": text_of(chat, tuned.token_ids),
        }
        for row, base, tuned in zip(rows, before.samples, after.samples, strict=False)
    ]


def side_by_side(
    conversations: Sequence[Sequence[str]], before: Answers, after: Answers
) -> list[dict[str, Any]]:
    """Return each question with its turn and the answers of both models."""
    return [
        {"turn": turn, "prompt": question, "base": base, "tuned": tuned}
        for asked, own_before, own_after in zip(
            conversations, before.side_by_side, after.side_by_side, strict=True
        )
        for turn, (question, base, tuned) in enumerate(zip(asked, own_before, own_after, strict=True), 1)
    ]


def first_question(row: TokenRow) -> str:
    """Return the question that opens a row's conversation."""
    return row.earlier[0]["content"] if row.earlier else row.question


def text_of(chat: ChatTokenizer, ids: Sequence[int]) -> str:
    return chat.answer_text(ids).rstrip("\n")

"""Make rows of general chat: the base model's own answers to the project's prompts.

Training on a few of them preserves the base's style. On held-out ones the tuned model's extra loss is an
unbiased estimate of KL(base || tuned) a token, because the answers are samples of the base's bare
distribution at temperature 1. The prompts belong to the project, so no third-party text is stored.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from trainer.base_model import BaseModel, load_model
from trainer.config_data import GeneralChatConfig
from trainer.data.conversation import Conversation, Message
from trainer.data.prompts import read_prompts
from trainer.data.tokenize import IGNORED, ChatTokenizer, TokenRow, answer_runs, turn_numbers
from trainer.errors import DataError
from trainer.generation import Answer, generate

SOURCE = "general chat"  # of these rows, in the report and in losses by source


@dataclass(frozen=True, slots=True)
class OwnAnswer:
    """One of the base's own answers to a prompt that was asked alone. text: without the end of the turn."""

    prompt: str
    answer: Answer
    text: str

    def row(self, chat: ChatTokenizer, before: Sequence[Message] = ()) -> TokenRow:
        """Return the answer as a row, after other turns or alone, with labels on its own tokens."""
        prompt = chat.prompt_ids([*before, Message("user", self.prompt)])
        ids, answer = [*prompt, *self.answer.token_ids], self.answer
        labels = [IGNORED] * len(prompt) + answer.token_ids
        if not answer.top_ids:
            return TokenRow(ids, labels, self.prompt, SOURCE)
        top_ids: list[list[int]] = [[] for _ in prompt]
        top_logprobs: list[list[float]] = [[] for _ in prompt]
        return TokenRow(
            ids, labels, self.prompt, SOURCE, top_ids + answer.top_ids, top_logprobs + answer.top_logprobs
        )


def answer_prompts(
    config: GeneralChatConfig,
    base: BaseModel,
    chat: ChatTokenizer,
    dtype: str,
    device: str,
    seed: int,
) -> tuple[list[OwnAnswer], list[OwnAnswer]]:
    """Return answers to train on and answers to measure on, to disjoint prompts."""
    wanted = config.train_prompts + config.test_prompts
    prompts = read_prompts(config.prompts, "data.general.prompts")
    if len(prompts) < wanted:
        raise DataError(f"{config.prompts} holds {len(prompts)} prompts, {wanted} are asked for")
    ids = [chat.prompt_ids([Message("user", prompt)]) for prompt in prompts[:wanted]]
    model = load_model(base.directory, dtype, device)
    top = config.top_tokens or 0
    answers = generate(model, ids, chat.pad_id, config.max_new_tokens, seed, top, chat.text_ends)
    made = [
        OwnAnswer(prompt, answer, chat.answer_text(answer.token_ids))
        for prompt, answer in zip(prompts, answers, strict=False)
    ]
    return made[config.test_prompts :], made[: config.test_prompts]


def same_as_text(answers: Sequence[OwnAnswer], chat: ChatTokenizer) -> list[OwnAnswer]:
    """Return the answers whose text gives their tokens again, so that they can stand in a conversation."""
    turns = [(Message("user", a.prompt), Message("assistant", a.text)) for a in answers]
    rendered = chat.rows([Conversation(messages, SOURCE) for messages in turns])
    return [
        answer
        for answer, made in zip(answers, rendered, strict=True)
        for row in made.rows
        if [row.input_ids[begin:end] for begin, end in answer_runs(row.labels)] == [_whole(answer, row)]
    ]


def aim(row: TokenRow, own: Sequence[int | None], answers: Sequence[OwnAnswer]) -> TokenRow:
    """Return a conversation's row with the base's probabilities as targets of its own answers.

    own: for each answer of the conversation its number in `answers`, or None. An answer that was cut has no
    target at its end of turn: the base would have continued.
    """
    labels = list(row.labels)
    top_ids: list[list[int]] = [[] for _ in labels]
    top_logprobs: list[list[float]] = [[] for _ in labels]
    numbers = (own[turn - 1] for turn in turn_numbers(row))
    for (begin, end), number in zip(answer_runs(row.labels), numbers, strict=True):
        if number is None:
            continue
        answer = answers[number].answer
        stop = begin + len(answer.token_ids)
        labels[stop:end] = [IGNORED] * (end - stop)
        if answer.top_ids:
            top_ids[begin:stop], top_logprobs[begin:stop] = answer.top_ids, answer.top_logprobs
    return replace(row, labels=labels, top_ids=top_ids, top_logprobs=top_logprobs)


def _whole(own: OwnAnswer, row: TokenRow) -> list[int]:
    """Return the tokens of an answer with the end of its turn, as the template ends it."""
    ids = own.answer.token_ids
    return ids if own.answer.stopped else [*ids, row.input_ids[answer_runs(row.labels)[-1][1] - 1]]

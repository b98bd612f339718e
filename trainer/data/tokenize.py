"""Conversations to `input_ids` and `labels`, for any fast tokenizer with a chat template.

Labels stand on assistant turns only, the end-of-turn token included, and are -100 elsewhere. Text
never becomes a control token: what looks like one inside a message is spelled out as plain text. In
all other cases the ids are those of the tokenizer's own `apply_chat_template`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.data.conversation import Conversation, Message
from trainer.errors import BaseModelError

IGNORED = -100
# Some templates print today's date unless it is given; training and serving pin the same one.
DATE = "26 Jul 2024"
# Unicode noncharacters, never part of a text, fence stand-ins for control tokens during rendering.
_STAND_IN = re.compile("\ufdd0(\\d+)\ufdd1")
_FENCES = str.maketrans("", "", "\ufdd0\ufdd1")


@dataclass(frozen=True, slots=True)
class TokenRow:
    """input_ids, labels: (length,) token ids; labels are -100 where nothing is to be learned.

    question: the text of the last user turn, for people to read.
    """

    input_ids: list[int]
    labels: list[int]
    question: str


class ChatTokenizer:
    """A Hugging Face fast tokenizer together with its chat template."""

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.is_fast or not tokenizer.chat_template:
            raise BaseModelError(
                "the base model needs a fast tokenizer (tokenizer.json) with a chat template; "
                "an instruct model has both"
            )
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.values()
        self._controls = sorted((t.content for t in added if t.special), key=len, reverse=True)
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self._pattern = re.compile("|".join(map(re.escape, self._controls)) or "(?!)")

    def row(self, conversation: Conversation) -> TokenRow:
        """Token ids of the whole conversation, with labels on every answer."""
        messages = conversation.messages
        text = self._render(messages, add_generation_prompt=False)
        spans = list(self._answer_spans(messages, text))
        input_ids: list[int] = []
        labels: list[int] = []
        for token, start, end in self._encode(text):
            input_ids.append(token)
            learned = any(first <= start and end <= last for first, last in spans)
            labels.append(token if learned else IGNORED)
        return TokenRow(input_ids, labels, messages[-2].content)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids up to where the next answer begins."""
        return [t for t, _, _ in self._encode(self._render(messages, add_generation_prompt=True))]

    def _answer_spans(self, messages: Sequence[Message], text: str) -> Iterator[tuple[int, int]]:
        """Character ranges of the answers in the rendered text."""
        for i, message in enumerate(messages):
            if message.role != "assistant":
                continue
            before = self._render(messages[:i], add_generation_prompt=True)
            through = self._render(messages[: i + 1], add_generation_prompt=False)
            if not (text.startswith(through.rstrip()) and through.startswith(before)):
                raise BaseModelError(
                    "this chat template renders a turn differently once others follow, so answers "
                    "cannot be told from prompts; use a template that only appends"
                )
            # Past the end-of-turn token some templates put a line break that no model need learn.
            yield len(before), len(through.rstrip())

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """The template's text, control tokens inside messages fenced as stand-ins."""
        rendered = self.tokenizer.apply_chat_template(
            [{"role": m.role, "content": self._fence(m.content)} for m in messages],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            date_string=DATE,
        )
        assert isinstance(rendered, str)
        return rendered

    def _fence(self, content: str) -> str:
        return self._pattern.sub(
            lambda match: f"\ufdd0{self._controls.index(match[0])}\ufdd1",
            content.translate(_FENCES),
        )

    def _encode(self, text: str) -> Iterator[tuple[int, int, int]]:
        """(token id, start, end) with character offsets into `text`."""
        position = 0
        for match in _STAND_IN.finditer(text):
            yield from self._encode_piece(text[position : match.start()], position)
            literal = self._controls[int(match[1])]
            plain = self.tokenizer(literal, add_special_tokens=False, split_special_tokens=True)
            yield from ((token, match.start(), match.end()) for token in plain["input_ids"])
            position = match.end()
        yield from self._encode_piece(text[position:], position)

    def _encode_piece(self, piece: str, offset: int) -> Iterator[tuple[int, int, int]]:
        encoded = self.tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True)
        for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            yield token, offset + start, offset + end

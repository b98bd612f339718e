"""Conversations to `input_ids` and `labels`, for any fast tokenizer with a chat template.

Labels stand on assistant turns only, the end-of-turn token included, and are -100 elsewhere. Text
never becomes a control token: what looks like one inside a message is spelled out as plain text. In
all other cases the ids are those of the tokenizer's own `apply_chat_template`.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.data.conversation import Conversation, Message
from trainer.errors import BaseModelError

IGNORED = -100
# Some templates print today's date unless it is given; training and serving pin the same one.
DATE = "26 Jul 2024"
# Unicode noncharacters, never part of a text, fence stand-ins for control tokens during rendering.
_STAND_IN = re.compile("\ufdd0(\\d+)\ufdd1")
Encoded = tuple[list[int], list[tuple[int, int]]]
_FENCES = str.maketrans("", "", "\ufdd0\ufdd1")


@dataclass(frozen=True, slots=True)
class TokenRow:
    """input_ids, labels: (length,) token ids; labels are -100 where nothing is to be learned.

    question: the text of the last user turn, for people to read. source: what the row is reported under.
    """

    input_ids: list[int]
    labels: list[int]
    question: str
    source: str = ""


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
        return self.rows([conversation])[0]

    def rows(self, conversations: Sequence[Conversation]) -> list[TokenRow]:
        """One row for each, tokenised in one call: use batches of some hundreds."""
        texts = [self._render(c.messages, add_generation_prompt=False) for c in conversations]
        rows = []
        for conversation, text, (ids, offsets) in zip(conversations, texts, self._encode(texts), strict=True):
            flat = itertools.chain.from_iterable(offsets)  # faster than np.array over tuples
            starts, ends = np.fromiter(flat, np.int64, 2 * len(ids)).reshape(-1, 2).T
            learned = np.zeros(len(ids), dtype=bool)
            for first, last in self._answer_spans(conversation.messages, text):
                learned |= (first <= starts) & (ends <= last)
            labels = np.where(learned, np.array(ids, dtype=np.int64), IGNORED).tolist()
            rows.append(TokenRow(ids, labels, conversation.messages[-2].content, conversation.source))
        return rows

    def runs(self, row: TokenRow) -> list[tuple[str, bool]]:
        """The row's text in pieces, True where it is learned, for people to read."""
        pairs = zip(row.input_ids, row.labels, strict=True)
        return [
            (str(self.tokenizer.decode([token for token, _ in run])), learned)
            for learned, run in itertools.groupby(pairs, key=lambda pair: pair[1] != IGNORED)
        ]

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids up to where the next answer begins."""
        ((ids, _),) = self._encode([self._render(messages, add_generation_prompt=True)])
        return ids

    def _answer_spans(self, messages: Sequence[Message], text: str) -> Iterator[tuple[int, int]]:
        """Character ranges of the answers in the rendered text."""
        for i, message in enumerate(messages):
            if message.role != "assistant":
                continue
            before = self._render(messages[:i], add_generation_prompt=True)
            last = i + 1 == len(messages)
            through = text if last else self._render(messages[: i + 1], add_generation_prompt=False)
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

    def _encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Token ids and character offsets of each text; all plain pieces go in one call."""
        pieces: list[tuple[int, int, str]] = []
        literals: dict[int, tuple[int, str]] = {}  # place in `pieces` → end, the control token spelled out
        for i, text in enumerate(texts):
            position = 0
            for match in _STAND_IN.finditer(text):
                pieces.append((i, position, text[position : match.start()]))
                literals[len(pieces)] = match.end(), self._controls[int(match[1])]
                pieces.append((i, match.start(), ""))
                position = match.end()
            pieces.append((i, position, text[position:]))
        encoded = self.tokenizer(
            [piece for _, _, piece in pieces],
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        found: list[Encoded] = [([], []) for _ in texts]
        for place, (i, offset, _) in enumerate(pieces):
            ids, offsets = encoded["input_ids"][place], encoded["offset_mapping"][place]
            if place in literals:
                end, literal = literals[place]
                plain = self.tokenizer(literal, add_special_tokens=False, split_special_tokens=True)
                ids = plain["input_ids"]
                offsets = [(offset, end)] * len(ids)
            elif offset:
                offsets = [(offset + start, offset + end) for start, end in offsets]
            found[i][0].extend(ids)
            found[i][1].extend(offsets)
        return found

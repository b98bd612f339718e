"""Turn conversations into `input_ids` and `labels`, for any fast tokenizer with a chat template.

Only assistant turns that are to be trained have labels, with the end-of-turn token; all other labels are
-100. Text never becomes a control token: a message that contains one is encoded with that token spelled out
as plain text. In all other cases the ids are those of the tokenizer's own `apply_chat_template`.
"""

import itertools
import re
from bisect import bisect_left, bisect_right
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
Turn = dict[str, str]  # role and content, as chat templates take them


@dataclass(frozen=True, slots=True)
class TokenRow:
    """input_ids, labels: (length,) token ids; labels are -100 where nothing is trained.

    question: the text of the last user turn, for people to read. source: the source that reports name.
    top_ids, top_logprobs: for each token the most likely tokens there and their log-probabilities, which
    training follows in place of the label; an empty list where the label counts. None: it counts everywhere.
    """

    input_ids: list[int]
    labels: list[int]
    question: str
    source: str = ""
    top_ids: list[list[int]] | None = None
    top_logprobs: list[list[float]] | None = None


class ChatTokenizer:
    """A Hugging Face fast tokenizer with its chat template."""

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
        self._longest_token = max(map(len, tokenizer.get_vocab()))
        self._literal_ids = [self._plain_ids(control) for control in self._controls]
        # The tokenizer's own call makes dictionaries of lists of every text: twice the time (docs/log.md).
        self._backend = tokenizer.backend_tokenizer
        self._backend.encode_special_tokens = False
        self._backend.no_truncation()
        self._backend.no_padding()

    def row(self, conversation: Conversation) -> TokenRow:
        """Return the token ids of a whole conversation, with labels on every answer."""
        return self.rows([conversation])[0]

    def rows(self, conversations: Sequence[Conversation]) -> list[TokenRow]:
        """Return a row for each, tokenised in one call: use batches of hundreds. Threads may share it."""
        fenced = [self._fence(c.messages) for c in conversations]
        texts = [self._render(turns, add_generation_prompt=False) for turns in fenced]
        rows = []
        for conversation, turns, text, pieces in zip(
            conversations, fenced, texts, self._encode(texts), strict=True
        ):
            spans = self._answer_spans(turns, text)
            said = [message for message in conversation.messages if message.role == "assistant"]
            answers = [span for span, message in zip(spans, said, strict=True) if message.trained]
            ids = [token for piece in pieces for token in piece.ids]
            labels = [label for piece in pieces for label in piece.labels(answers)]
            rows.append(TokenRow(ids, labels, conversation.messages[-2].content, conversation.source))
        return rows

    def may_fit(self, conversation: Conversation, max_length: int) -> bool:
        """Return False if even the longest tokens make too many: encoding 50 MB of text takes gigabytes."""
        characters = sum(len(message.content) for message in conversation.messages)
        return characters <= max_length * self._longest_token

    def runs(self, row: TokenRow) -> list[tuple[str, bool]]:
        """Return the row's text in pieces, True where it is trained, for people to read."""
        pairs = zip(row.input_ids, row.labels, strict=True)
        return [
            (str(self.tokenizer.decode([token for token, _ in run])), learned)
            for learned, run in itertools.groupby(pairs, key=lambda pair: pair[1] != IGNORED)
        ]

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids up to where the next answer begins."""
        (pieces,) = self._encode([self._render(self._fence(messages), add_generation_prompt=True)])
        return [token for piece in pieces for token in piece.ids]

    def _answer_spans(self, turns: list[Turn], text: str) -> Iterator[tuple[int, int]]:
        """Yield the character range of each answer in the rendered text."""
        for i, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            before = self._render(turns[:i], add_generation_prompt=True)
            last = i + 1 == len(turns)
            through = text if last else self._render(turns[: i + 1], add_generation_prompt=False)
            if not (text.startswith(through.rstrip()) and through.startswith(before)):
                raise BaseModelError(
                    "this chat template renders a turn differently once others follow, so answers "
                    "cannot be separated from prompts; use a template that only appends"
                )
            # Some templates put a line break after the end-of-turn token, which needs no training.
            yield len(before), len(through.rstrip())

    def _render(self, turns: list[Turn], *, add_generation_prompt: bool) -> str:
        rendered = self.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=add_generation_prompt, date_string=DATE
        )
        assert isinstance(rendered, str)
        return rendered

    def _fence(self, messages: Sequence[Message]) -> list[Turn]:
        """Return the template's input, with stand-ins for control tokens inside messages."""

        def fenced(content: str) -> str:
            bare = content.replace("\ufdd0", "").replace("\ufdd1", "")
            return self._pattern.sub(lambda match: f"\ufdd0{self._controls.index(match[0])}\ufdd1", bare)

        return [{"role": m.role, "content": fenced(m.content)} for m in messages]

    def _plain_ids(self, control: str) -> list[int]:
        """Return the ids of a control token spelled out as text."""
        ids = self.tokenizer(control, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return list(ids)

    def _encode(self, texts: Sequence[str]) -> list[list["Piece"]]:
        """Return the pieces of each text: the stand-ins, and what lies between them, encoded in one call."""
        plain: list[str] = []
        for text in texts:
            plain.extend(_STAND_IN.split(text)[::2])
        encodings = iter(self._backend.encode_batch(plain, add_special_tokens=False))
        found = []
        for text in texts:
            pieces, position = [], 0
            for match in _STAND_IN.finditer(text):
                encoding = next(encodings)
                pieces.append(Piece(position, match.start(), encoding.ids, encoding))
                pieces.append(Piece(*match.span(), self._literal_ids[int(match[1])], None))
                position = match.end()
            encoding = next(encodings)
            pieces.append(Piece(position, len(text), encoding.ids, encoding))
            found.append(pieces)
        return found


def answer_runs(labels: Sequence[int]) -> list[tuple[int, int]]:
    """Return where each answer begins and ends: the runs of labels that are not IGNORED."""
    runs, place = [], 0
    for learned, run in itertools.groupby(labels, key=lambda label: label != IGNORED):
        end = place + len(list(run))
        if learned:
            runs.append((place, end))
        place = end
    return runs


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a text and its tokens. encoding: None for a control token spelled out."""

    start: int
    end: int
    ids: list[int]
    encoding: Any

    def labels(self, answers: Sequence[tuple[int, int]]) -> list[int]:
        """Return the ids of tokens within an answer (a range of characters), and IGNORED elsewhere."""
        labels = [IGNORED] * len(self.ids)
        for first, last in answers:
            if first < self.end and self.start < last:
                begin, end = self._tokens(first, last)
                labels[begin:end] = self.ids[begin:end]
        return labels

    def _tokens(self, first: int, last: int) -> tuple[int, int]:
        """Return the range of tokens that begin at `first` or later and end by `last`."""
        everything = range(len(self.ids))
        if self.encoding is None:
            return (0, len(self.ids)) if first <= self.start and self.end <= last else (0, 0)
        # Asking for the few places that the search needs is faster than building all tuples.
        place = self.encoding.token_to_chars
        begin = bisect_left(everything, first - self.start, key=lambda i: place(i)[0])
        end = bisect_right(everything, last - self.start, key=lambda i: place(i)[1])
        return begin, max(begin, end)

"""Turn conversations into `input_ids` and `labels`, for any fast tokenizer with a chat template.

Only assistant turns that are to be trained have labels, with the end-of-turn token; all other labels are
-100. The tokens before an answer are those that the API makes of the same turns. Text never becomes a control
token: a message that contains one is encoded with that token spelled out as plain text.
"""

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer

from trainer.data.chat_template import Answer, ChatTemplate, Text
from trainer.data.conversation import Conversation, Message
from trainer.data.shapes import RowError
from trainer.data.template_form import ends_of
from trainer.errors import BaseModelError
from trainer.generation import TextEnds

IGNORED = -100
# Control tokens of widespread templates: a text that contains one was probably formatted for it.
WIDESPREAD = (
    "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>",
    "<|user|>", "<|assistant|>", "<|end|>", "[INST]", "[/INST]",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TokenRow:
    """input_ids, labels: (length,) token ids; labels are -100 where nothing is trained.

    question: the text of the last user turn, for people to read. source: the source that reports name.
    top_ids, top_logprobs: for each token the most likely tokens there and their log-probabilities, which
    training follows in place of the label; an empty list where the label counts. None: it counts everywhere.
    turns: for each trained answer its number in the conversation, from 1; None: they are its first ones.
    earlier: the questions and answers before the last question, with `role` and `content`.
    """

    input_ids: list[int]
    labels: list[int]
    question: str
    source: str = ""
    top_ids: list[list[int]] | None = None
    top_logprobs: list[list[float]] | None = None
    turns: list[int] | None = None
    earlier: list[dict[str, str]] | None = None


@dataclass(frozen=True, slots=True)
class Rendered:
    """What became of a conversation: one row, or a row for each answer, or none.

    problem: why there is none. controls: control tokens, also of other models, that its
    messages contain as text.
    """

    rows: list[TokenRow] = field(default_factory=list)
    problem: str = ""
    controls: set[str] = field(default_factory=set)


class ChatTokenizer:
    """A Hugging Face fast tokenizer with its chat template.

    own_thinking_only: leave out the thinking of the answers before the one that is trained.
    """

    def __init__(self, tokenizer: Any, own_thinking_only: bool = False) -> None:
        if not tokenizer.is_fast or not tokenizer.chat_template:
            raise BaseModelError(
                "the base model needs a fast tokenizer (tokenizer.json) with a chat template; "
                "an instruct model has both"
            )
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self._controls = {token.content: i for i, token in added.items() if token.special}
        self.template = ChatTemplate(tokenizer, list(self._controls), own_thinking_only)
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self._marks = {*self._controls, *WIDESPREAD}
        self._longest_token = max(map(len, tokenizer.get_vocab()))
        # The tokenizer's own call makes dictionaries of lists of every text: twice the time (docs/log.md).
        self._backend = tokenizer.backend_tokenizer
        self._backend.encode_special_tokens = False
        self._backend.no_truncation()
        self._backend.no_padding()
        self._literal = Tokenizer.from_str(self._backend.to_str())
        self._literal.encode_special_tokens = True
        self._header, self._header_ids = self._usual_header()
        self.text_ends = self._text_ends()

    def row(self, conversation: Conversation) -> TokenRow:
        """Return the one row of a conversation. Raises: RowError if the template makes none or several."""
        made = self.rows([conversation])[0]
        if len(made.rows) != 1:
            raise RowError(made.problem or f"the chat template makes {len(made.rows)} rows of it")
        return made.rows[0]

    def rows(self, conversations: Sequence[Conversation]) -> list[Rendered]:
        """Return the rows of each, tokenised in one call: use batches of hundreds. Threads may share it."""
        texts: list[list[Text]] = []
        problems = []
        for conversation in conversations:
            try:
                texts.append(self.template.texts(conversation.messages, conversation.tools))
                problems.append("")
            except RowError as reason:
                texts.append([])
                problems.append(str(reason))
        encoded = iter(self._encode([text for own in texts for text in own]))
        return [
            Rendered(
                [row for text in own for row in self._rows(conversation, text, next(encoded))],
                problem,
                self._controls_in(conversation) if own else set(),
            )
            for conversation, own, problem in zip(conversations, texts, problems, strict=True)
        ]

    def may_fit(self, conversation: Conversation, max_length: int) -> bool:
        """Return False if even the longest tokens make too many: encoding 50 MB of text takes gigabytes."""
        texts = [text for m in conversation.messages for text in (m.reasoning, m.said)]
        characters = sum(map(len, (*texts, *conversation.tools)))
        return characters <= max_length * self._longest_token

    def runs(self, row: TokenRow) -> list[tuple[str, bool]]:
        """Return the row's text in pieces, True where it is trained, for people to read."""
        pairs = zip(row.input_ids, row.labels, strict=True)
        return [
            (str(self.tokenizer.decode([token for token, _ in run])), learned)
            for learned, run in itertools.groupby(pairs, key=lambda pair: pair[1] != IGNORED)
        ]

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids up to where the next answer begins. Raises: RowError."""
        return self._ids(self.template.prompt(messages))

    def answer_text(self, ids: Sequence[int]) -> str:
        """Return the text of an answer's tokens, without what ends it."""
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        for end in self.text_ends.texts if self.text_ends else ():
            text = text.partition(end)[0]
        return text

    def _text_ends(self) -> TextEnds | None:
        """Return the ends of answers that are no tokens, or None if all are."""
        try:
            texts = ends_of(self.tokenizer, self.template.render, self.template.tool_form).texts
        except RowError:
            return None
        return TextEnds(texts, lambda ids: str(self.tokenizer.decode(ids))) if texts else None

    def _controls_in(self, conversation: Conversation) -> set[str]:
        """Return the control tokens, of this tokenizer or of a widespread template, that texts contain."""
        texts = [message.content for message in conversation.messages]
        return {mark for mark in self._marks if any(mark in text for text in texts)}

    def _usual_header(self) -> tuple[str, list[int]]:
        """Return what most prompts end with, from their last control token on, and its tokens."""
        try:
            prompt = self.template.prompt([Message("user", "x")])
        except RowError:
            return "", []
        header = self.template.header(prompt, len(prompt.text))
        return (header.text, self._ids(header)) if header.text != prompt.text else ("", [])

    def _rows(self, conversation: Conversation, text: Text, pieces: Sequence["Piece"]) -> list[TokenRow]:
        """Return one row, or a row for each answer if the text has other tokens than its prompts."""
        ids = [token for piece in pieces for token in piece.ids]
        labels = [IGNORED] * len(ids)
        for answer in text.answers:
            begin = sum(piece.before(answer.start) for piece in pieces)
            end = sum(piece.until(answer.end) for piece in pieces)
            if not self._follows(ids[:begin], text, answer.start):
                return [self._apart(conversation, text, answer) for answer in text.answers]
            labels[begin:end] = ids[begin:end]
        return [_row(conversation, ids, labels, text.answers)]

    def _apart(self, conversation: Conversation, text: Text, answer: Answer) -> TokenRow:
        """Return the row of one answer, encoded apart from its prompt, as the API encodes that."""
        prompt = self._ids(text.part(0, answer.start))
        said = self._ids(text.part(answer.start, answer.end))
        return _row(conversation, prompt + said, [IGNORED] * len(prompt) + said, [answer])

    def _follows(self, ids: list[int], text: Text, start: int) -> bool:
        """Return whether `ids` are the tokens of the text before `start`, taken alone.

        Only those after the last control token can differ: an answer may change where the text is cut.
        """
        usual = self._header and text.text.endswith(self._header, 0, start)
        wanted = self._header_ids if usual else self._ids(self.template.header(text, start))
        return ids[-len(wanted) :] == wanted

    def _ids(self, text: Text) -> list[int]:
        (pieces,) = self._encode([text])
        return [token for piece in pieces for token in piece.ids]

    def _encode(self, texts: Sequence[Text]) -> list[list["Piece"]]:
        """Return the pieces of each text: one, or more where messages contain the text of control tokens."""
        whole = [text.text for text in texts if not text.literals]
        encodings = iter(self._backend.encode_batch(whole, add_special_tokens=False))
        found = []
        for text in texts:
            if text.literals:
                found.append(self._pieces(text))
            else:
                encoding = next(encodings)
                found.append([Piece(0, len(text.text), encoding.ids, encoding)])
        return found

    def _pieces(self, text: Text) -> list["Piece"]:
        """Return a piece for each control token of the template, and for each text between them."""
        starts, ends = [0, *(end for _, end in text.own)], [*(start for start, _ in text.own), len(text.text)]
        between = [text.text[start:end] for start, end in zip(starts, ends, strict=True)]
        encodings = self._literal.encode_batch(between, add_special_tokens=False)
        pieces = []
        for i, encoding in enumerate(encodings):
            pieces.append(Piece(starts[i], ends[i], encoding.ids, encoding))
            if i < len(text.own):
                start, end = text.own[i]
                pieces.append(Piece(start, end, [self._controls[text.text[start:end]]], None))
        return pieces


def _row(
    conversation: Conversation, ids: list[int], labels: list[int], answers: Sequence[Answer]
) -> TokenRow:
    """Return the row of these answers; its question is that of the last of them."""
    turns = [answer.turn for answer in answers]
    said = [i for i, message in enumerate(conversation.messages) if message.role == "assistant"]
    last = said[turns[-1] - 1]
    asked = max(i for i in range(last) if conversation.messages[i].role == "user")
    earlier = [{"role": m.role, "content": m.said} for m in conversation.messages[:asked]]
    earlier = [turn for turn in earlier if turn["role"] != "system"]
    question = conversation.messages[asked].content
    return TokenRow(ids, labels, question, conversation.source, turns=turns, earlier=earlier)


def turn_numbers(row: TokenRow) -> list[int]:
    """Return for each trained answer of a row its number in the conversation, from 1."""
    return row.turns or list(range(1, len(answer_runs(row.labels)) + 1))


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
    """A part of a text and its tokens. encoding: None for a control token of the template."""

    start: int
    end: int
    ids: list[int]
    encoding: Any

    def before(self, first: int) -> int:
        """Return how many of the tokens begin before a place of the text."""
        if first <= self.start or self.end <= first:
            return 0 if first <= self.start else len(self.ids)
        # Asking for the few places that the search needs is faster than building all tuples.
        place = self.encoding.token_to_chars
        return bisect_left(range(len(self.ids)), first - self.start, key=lambda i: place(i)[0])

    def until(self, last: int) -> int:
        """Return how many of the tokens end at a place of the text, or before."""
        if last <= self.start or self.end <= last:
            return 0 if last <= self.start else len(self.ids)
        place = self.encoding.token_to_chars
        return bisect_right(range(len(self.ids)), last - self.start, key=lambda i: place(i)[1])

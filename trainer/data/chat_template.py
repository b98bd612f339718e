"""Render conversations with a chat template, and find the answers in the text.

The text before an answer is always what the API renders for the same turns. Most templates only append, so
one text holds every answer of a conversation. Where a template renders earlier turns differently once others
follow, each answer gets a text of its own.

Text never becomes a control token: one inside a message is a stand-in while the template runs, and the
template's own ones are known by their places afterwards.
"""

import itertools
import json
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from trainer.data.conversation import Message
from trainer.data.shapes import RowError
from trainer.data.template_form import Turn, tool_form
from trainer.data.template_traits import FIELDS, MARKERS, opening, shared, split_thought, thought, traits_of

# Some templates print today's date unless it is given; training and serving pin the same one.
DATE = "26 Jul 2024"
REASON_CHARACTERS = 120
# Unicode noncharacters, never part of a text, fence stand-ins for control tokens during rendering.
_STAND_IN = re.compile("\ufdd0(\\d+)\ufdd1")
Render = Callable[[list[Turn], bool], str]  # turns, and whether the prompt of an answer to them is wanted


@dataclass(frozen=True, slots=True)
class Answer:
    """A trained answer in a text. turn: its number in the conversation, from 1. start, end: its place."""

    turn: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Text:
    """A rendered conversation with its trained answers.

    literals: control tokens that messages contain as plain text. own: where the template's own control tokens
    are, if there are literals; otherwise all are its own.
    """

    text: str
    answers: tuple[Answer, ...] = ()
    literals: frozenset[str] = frozenset()
    own: tuple[tuple[int, int], ...] = ()

    def part(self, start: int, end: int) -> "Text":
        """Return the text between two places, without the answers."""
        inside = ((a - start, b - start) for a, b in self.own if start <= a and b <= end)
        return Text(self.text[start:end], (), self.literals, tuple(inside))


class ChatTemplate:
    """The chat template of a tokenizer.

    controls: the texts of its control tokens. own_thinking_only: leave out the thinking of the answers before
    the one that is trained.
    """

    def __init__(self, tokenizer: Any, controls: Sequence[str], own_thinking_only: bool = False) -> None:
        self._tokenizer = tokenizer
        self._own_thinking_only = own_thinking_only
        self._controls = sorted(controls, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, self._controls)) or "(?!)")
        self.tool_form = tool_form(self.render)
        self.traits = traits_of(lambda turns, prompt: self.render(list(turns), (), prompt))

    def texts(self, messages: Sequence[Message], tools: Sequence[str] = ()) -> list[Text]:
        """Return one text with all trained answers, or one for each of them.

        tools: functions that may be called, each as JSON text. Raises: RowError.
        """
        if tools and not self.tool_form:
            raise RowError("the chat template has no place for tools")
        form = self.tool_form
        offered = [self._fenced(form.offered(json.loads(tool)) if form else tool) for tool in tools]
        render = partial(self._rendered, offered)
        turns = self._turns(messages)
        bare = [without_thinking(message) for message in messages] if self._own_thinking_only else messages
        if list(bare[:-1]) != list(messages[:-1]):
            return list(self._apart(render, turns, self._turns(bare), messages))
        text = render(turns, False)
        answers = self._appended(render, turns, text)
        if answers is None:
            return list(self._apart(render, turns, turns, messages))
        said = [message for message in messages if message.role == "assistant"]
        trained = [a for a, message in zip(answers, said, strict=True) if message.trained]
        return [self._text(text, trained)]

    def prompt(self, messages: Sequence[Message]) -> Text:
        """Return the text up to where the next answer begins. Raises: RowError."""
        return self._text(self.render(self._turns(messages), (), True))

    def header(self, text: Text, end: int) -> Text:
        """Return the text before `end` from its last control token on; all of it if there is none."""
        own = text.own if text.literals else [m.span() for m in self._pattern.finditer(text.text, 0, end)]
        return text.part(max((start for start, stop in own if stop <= end), default=0), end)

    def _appended(self, render: Render, turns: list[Turn], text: str) -> list[Answer] | None:
        """Return the place of every answer in the text, or None if it has other prompts than the API."""
        found: list[Answer] = []
        for i, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            before = render(turns[:i], True)
            through = text if i + 1 == len(turns) else render(turns[: i + 1], False)
            end = _end(through)
            if not (text.startswith(through[:end]) and through.startswith(before)):
                return None
            found.append(Answer(len(found) + 1, len(before), end))
        return found

    def _apart(
        self, render: Render, turns: list[Turn], earlier: list[Turn], messages: Sequence[Message]
    ) -> Iterator[Text]:
        """Yield a text for each trained answer: its prompt, and the answer as the last turn.

        earlier: the turns as they are before an answer.
        """
        places = [i for i, message in enumerate(messages) if message.role == "assistant"]
        for number, i in enumerate(places, 1):
            if not messages[i].trained:
                continue
            before = render(earlier[:i], True)
            written = render([*earlier[:i], turns[i]], False)
            through = _following(before, written, turns[i])
            yield self._text(through, [Answer(number, len(before), _end(through))])

    def render(self, turns: list[Turn], tools: Sequence[dict[str, Any]], prompt: bool) -> str:
        """Return the text of turns, or with `prompt` that before the answer to them.

        Raises: RowError with what the template says, or what went wrong in it.
        """
        try:
            rendered = self._tokenizer.apply_chat_template(
                turns, tools=tools or None, tokenize=False, add_generation_prompt=prompt, date_string=DATE
            )
        except Exception as error:  # a template is a program: it may raise anything
            said = " ".join(str(error).split()) or type(error).__name__
            raise RowError(f"the chat template refuses it: {said[:REASON_CHARACTERS]}") from None
        return str(rendered)

    def _rendered(self, tools: Sequence[dict[str, Any]], turns: list[Turn], prompt: bool) -> str:
        return self.render(turns, tools, prompt)

    def _turns(self, messages: Sequence[Message]) -> list[Turn]:
        """Return the template's input, with stand-ins for control tokens inside messages."""
        turns = [self._turn(message) for message in messages]
        laid_out = self.tool_form.laid_out(turns) if self.tool_form else turns
        return [
            {name: self._fenced(value) if name != "role" else value for name, value in turn.items()}
            for turn in laid_out
        ]

    def _turn(self, message: Message) -> Turn:
        """Return a message in OpenAI's form."""
        turn: Turn = {"role": message.role, "content": message.content}
        if message.reasoning:
            turn[self.traits.field or FIELDS[0]] = message.reasoning
        if message.calls and self.tool_form:
            turn["tool_calls"] = [
                {"id": call.id, "function": {"name": call.name, "arguments": call.arguments}}
                for call in message.calls
            ]
        if message.call_id and self.tool_form:
            turn["tool_call_id"] = message.call_id
        return turn

    def _fenced(self, value: Any) -> Any:
        """Return a text, or all texts within a JSON value, with the stand-ins."""
        if isinstance(value, str):
            bare = value.replace("\ufdd0", "").replace("\ufdd1", "")
            return self._pattern.sub(lambda match: f"\ufdd0{self._controls.index(match[0])}\ufdd1", bare)
        if isinstance(value, list):
            return [self._fenced(item) for item in value]
        if isinstance(value, dict):
            return {self._fenced(name): self._fenced(item) for name, item in value.items()}
        return value

    def _text(self, rendered: str, answers: Sequence[Answer] = ()) -> Text:
        """Return a rendered text with its control tokens written out, and all places moved with them."""
        found = [(match, self._controls[int(match[1])]) for match in _STAND_IN.finditer(rendered)]
        if not found:
            return Text(rendered, tuple(answers))
        ends = [match.end() for match, _ in found]
        shifts = [0, *itertools.accumulate(len(control) - len(match[0]) for match, control in found)]

        def place(position: int) -> int:
            return position + shifts[bisect_right(ends, position)]

        moved = (Answer(answer.turn, place(answer.start), place(answer.end)) for answer in answers)
        own = ((place(m.start()), place(m.end())) for m in self._pattern.finditer(rendered))
        text = _STAND_IN.sub(lambda match: self._controls[int(match[1])], rendered)
        return Text(text, tuple(moved), frozenset(control for _, control in found), tuple(own))


def without_thinking(message: Message) -> Message:
    """Return an answer without its thinking, and any other message as it is."""
    if message.role != "assistant":
        return message
    return replace(message, content=split_thought(message.content)[1], reasoning="")


def _following(prompt: str, written: str, answer: Turn) -> str:
    """Return the text of a conversation with its last answer right behind the prompt that asks for it.

    A prompt may begin the thinking of an answer, which the template leaves out where it writes answers: the
    model then has to write the rest of it. Raises: RowError if the answer cannot follow.
    """
    if written.startswith(prompt):
        return written
    missing = opening(prompt, written)
    rest = written[shared(prompt, written) :]
    if missing in MARKERS:
        thinking, _ = split_thought(answer["content"] or "")
        thinking = next((answer[name] for name in FIELDS if answer.get(name)), thinking)
        rest = thought(thinking, rest.lstrip(), missing).removeprefix(f"{missing}\n")
    elif missing:
        raise RowError("the chat template writes an answer that does not follow its own prompt")
    return prompt + rest


def _end(text: str) -> int:
    """Return where the last answer ends: a line break after its end of turn needs no training."""
    return len(text.rstrip())

"""Render messages to token ids with the artifact's own chat template.

Text from a client never becomes a control token: `<|im_end|>` inside a message is encoded as the characters
that it consists of. The tokenizer adds nothing; the ids begin with a BOS only if the template prints one.
"""

import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from api.engine import thinking
from api.engine.artifact import TEMPLATE_DATE
from api.engine.messages import Call, Layout, Message, Tool
from api.engine.template import named_roles, system_in_question, takes_system, variables
from api.engine.template_form import Ends, ends_of, in_channels, tool_form
from api.engine.thinking import Marker, Thinking, Thinks
from api.engine.tool_prompt import HERMES, template_input
from api.engine.turns import in_turns
from api.errors import ArtifactError, InvalidRequest

EFFORT = "reasoning_effort"  # a variable of some templates
_TAIL_TOKENS = 64  # of a prompt, which a marker and the white space around it may take up


class Prompt:
    """Encode prompts for one model. Safe to use from several threads."""

    def __init__(self, tokenizer: Any) -> None:
        """tokenizer: a fast Hugging Face tokenizer with a chat template.

        Raises: ArtifactError if the answers of the template cannot be read.
        """
        self._template = tokenizer
        if in_channels(self._tried):
            raise ArtifactError(
                "the chat template writes answers in channels (OpenAI's Harmony), which this API does not "
                "read; serve a model with another template"
            )
        self._tool_form = tool_form(self._tried)
        self.lays_out_tools = self._tool_form is not None
        self.written = self._tool_form.written if self._tool_form else HERMES  # how an answer has a call
        self.ends = self._ends()
        self.variables = variables(tokenizer)  # that a request may set
        self.thinking: Thinking | None = None  # until it is found
        self._takes_system = True  # likewise
        self._takes_system = takes_system(lambda messages: self._render(self._given(messages)))
        self.named_roles = named_roles(lambda messages: self._render(self._given(messages)))
        self._encode = tokenizer.backend_tokenizer
        self._encode_plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._encode_plain.encode_special_tokens = True
        self._control = {
            token.content: id for id, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        longest_first = sorted(self._control, key=len, reverse=True)
        self._byte_level = '"type":"ByteLevel"' in json.dumps(
            json.loads(self._encode.to_str())["decoder"], separators=(",", ":")
        )
        # A tokenizer without control tokens gets a pattern that matches nothing.
        pattern = "|".join(map(re.escape, longest_first)) or r"(?!)"
        self._control_pattern = re.compile(f"({pattern})")
        spelled = "".join(v for v in astuple(replace(self.written, end="")) if isinstance(v, str))
        self.calls_in_controls = bool(self._control_pattern.search(spelled))  # answers must show them
        self.thinking = thinking.find(
            str(tokenizer.chat_template), self.variables, self._marker, self._end, self._reads
        )

    @classmethod
    def load(cls, directory: Path) -> "Prompt":
        """Raises: ArtifactError naming the directory."""
        from transformers import AutoTokenizer  # seconds to import

        try:
            return cls(AutoTokenizer.from_pretrained(directory, local_files_only=True))
        except ArtifactError as error:
            raise ArtifactError(f"artifact {directory}: {error}") from None

    def encode(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        layout: Layout | None = None,
        *,
        ordered: bool = False,
    ) -> list[int]:
        """Return the token ids up to where the assistant's answer begins or continues.

        ordered: questions and answers take turns first, as strict templates insist (turns.py).
        Raises: InvalidRequest if the template refuses the conversation.
        """
        given = self._given(messages, tools, layout, ordered)
        if not any(self._control_pattern.search(text) for text in _texts(given)):
            return _ids(self._encode, self._render(given))
        return self._encode_with_literals(given)

    def begins(self, ids: list[int], continued: str = "") -> Thinks | None:
        """Return how the answer to the prompt `ids` thinks, if it does. continued: what it continues."""
        if self.thinking is None:
            return None
        return thinking.begins(self.thinking, self.text(ids[-_TAIL_TOKENS:]), continued)

    def heeds(self, layout: Layout) -> bool:
        """Return whether the template can do what a request asks about thinking."""
        if self.thinking is not None and (self.thinking.switch is not None or layout.thinking):
            return True
        return layout.effort is not None and EFFORT in self.variables

    def encode_text(self, text: str) -> list[int]:
        """Return the token ids of a text without a template, with the tokens that the tokenizer adds."""
        return _ids(self._encode_plain, text, add_special_tokens=True)

    def text(self, ids: list[int]) -> str:
        """Return the text of token ids, control tokens included."""
        text: str = self._encode.decode(ids, skip_special_tokens=False)
        return text

    def token_bytes(self, id: int) -> bytes:
        """Return the bytes that the token stands for, which may be a part of a character."""
        token = self._encode.id_to_token(id)
        if token is None:  # the model's vocabulary can be larger than the tokenizer's
            return b""
        if self._byte_level and token not in self._control and all(c in _BYTE_OF for c in token):
            return bytes(_BYTE_OF[c] for c in token)
        text: str = self._encode.decode([id], skip_special_tokens=False)
        return text.encode()

    def _given(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        layout: Layout | None = None,
        ordered: bool = False,
    ) -> dict[str, Any]:
        """Return all that comes from a client. end: a mark where the prompt must end, in the last message."""
        layout = layout or Layout()
        if not self._takes_system:
            messages = system_in_question(messages)
        key = self.thinking.key if self.thinking else None
        given = template_input(messages, tools, self._tool_form, key)
        if ordered:
            given["messages"] = in_turns(given["messages"], self._takes_system)
        end = secrets.token_hex(16) if layout.continued else ""
        given["messages"][-1]["content"] = (given["messages"][-1]["content"] or "") + end
        values = {**self._thinking_values(layout), **layout.values}
        return {**given, "values": values, "begins": layout.begins, "end": end}

    def _thinking_values(self, layout: Layout) -> dict[str, bool | str]:
        """Return the template's variables for what a request asks about thinking."""
        values: dict[str, bool | str] = {}
        if layout.thinking is not None and self.thinking and self.thinking.switch:
            values[self.thinking.switch] = layout.thinking
        if layout.effort is not None and EFFORT in self.variables:
            values[EFFORT] = layout.effort
        return values

    def described(self) -> list[str]:
        """Return what was found in the template, a sentence each."""
        ends = [*(self.text([id]) for id in self.ends.ids), *self.ends.texts]
        call = " ".join(f"{self.written.begin}NAME{self.written.middle}".split())
        own = self.lays_out_tools
        where = "the template lays out functions" if own else "functions are written as text"
        thinks = f"it thinks until {self.thinking.closing.text}" if self.thinking else "it does not think"
        return [
            f"the template ends answers with {' and '.join(ends) or 'nothing'}",
            f"{where}; a call begins with {call}",
            thinks,
        ]

    def without_controls(self, text: str) -> str:
        """Return a text of an answer without the text of control tokens."""
        return self._control_pattern.sub("", text)

    def grammar_text(self, text: str) -> str:
        """Return the rule of the grammar library for a text, in which control tokens are tokens."""
        pieces = enumerate(self._control_pattern.split(text))
        return " ".join(
            f"<[{self._control[piece]}]>" if number % 2 else json.dumps(piece, ensure_ascii=False)
            for number, piece in pieces
            if piece
        )

    def _tried(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], begins: bool) -> str:
        """Return how the template renders turns in its own form."""
        return self._render({"messages": messages, "tools": tools, "values": {}, "begins": begins, "end": ""})

    def _ends(self) -> Ends:
        """Return what the template puts behind an answer."""
        try:
            return ends_of(self._template, self._tried, self._tool_form)
        except InvalidRequest:  # it refuses a question and its answer
            return Ends((), ())

    def _marker(self, text: str) -> Marker:
        return Marker(text, self._encode.token_to_id(text), text in self._control)

    def _end(self, values: Mapping[str, Any]) -> str:
        """Return a prompt with these variables, without the white space at its end; "" if it is refused."""
        try:
            return self._render(self._given([Message("user", "Hi")], (), Layout(values=values))).rstrip()
        except Exception:  # whatever an expression of the template raises
            return ""

    def _reads(self, key: str, mark: str) -> bool:
        """Return whether the template writes the thinking `mark` of an earlier message under this key."""
        asked, call = Message("user", "Hi"), Call("c", "f", "{}")
        thought = [asked, Message("assistant", "x", thinking=mark)]
        called = [asked, Message("assistant", "", (call,), thinking=mark), Message("tool", "x", call_id="c")]
        for messages in (thought, called):
            given = template_input(messages, (), self._tool_form, key)
            try:
                if mark in self._render({**given, "values": {}, "begins": True, "end": ""}):
                    return True
            except Exception:  # the template has no such conversations
                continue
        return False

    def _encode_with_literals(self, given: dict[str, Any]) -> list[int]:
        """Encode messages that contain the text of a control token.

        An unguessable mark splits such text while the template runs, so the control tokens that are whole
        in the result are the template's own. Then the marks are removed.
        """
        mark = secrets.token_hex(16)
        broken = _changed(
            given, lambda text: self._control_pattern.sub(lambda m: m[0][0] + mark + m[0][1:], text)
        )
        ids: list[int] = []
        # `split` keeps what a group in the pattern matches, so text and control tokens alternate.
        for number, piece in enumerate(self._control_pattern.split(self._render(broken))):
            if number % 2:
                ids.append(self._control[piece])
            elif piece:
                ids += _ids(self._encode_plain, piece.replace(mark, ""))
        return ids

    def _render(self, given: dict[str, Any]) -> str:
        try:
            text: str = self._template.apply_chat_template(
                given["messages"],
                tools=given["tools"] or None,
                tokenize=False,
                add_generation_prompt=given["begins"] and not given["end"],
                date_string=TEMPLATE_DATE,
                **given["values"],
            )
        except Exception as error:  # a template is a program: it may raise anything
            raise InvalidRequest(
                f"The model's chat template refuses these messages: {error}", param="messages"
            ) from None
        if given["end"] not in text:
            raise InvalidRequest("The model's chat template cannot continue a message.", param="messages")
        return text[: text.rindex(given["end"])] if given["end"] else text


def _ids(tokenizer: Any, text: str, *, add_special_tokens: bool = False) -> list[int]:
    """Encode with `encode_batch`. `encode` would block all other threads, for a second with a long text."""
    ids: list[int] = tokenizer.encode_batch([text], add_special_tokens=add_special_tokens)[0].ids
    return ids


def _byte_of() -> dict[str, int]:
    """Return byte-level BPE's alphabet: printable bytes as themselves, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_of()


def _texts(value: Any) -> Iterator[str]:
    """Yield every string in a JSON value, including names."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, part in value.items():
            yield name
            yield from _texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    """Return a JSON value with `change` applied to every string in it."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(name): _changed(part, change) for name, part in value.items()}
    if isinstance(value, list):
        return [_changed(part, change) for part in value]
    return value

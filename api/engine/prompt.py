"""Messages → token ids, by the artifact's own chat template.

Text from a client never becomes a control token: `<|im_end|>` inside a message is encoded as the
characters it is made of. The tokenizer adds nothing; a BOS is there if the template prints one.
"""

import json
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
from tokenizers import Tokenizer

from api.engine.messages import Message, Tool
from api.engine.tool_prompt import knows_tools, template_input
from api.errors import InvalidRequest

# Llama 3's template prints a date. Training rows were rendered with this one, the template's own
# default, so the same conversation always has the same tokens.
TEMPLATE_DATE = "26 Jul 2024"


class Prompt:
    """The template and tokenizer of one model; safe to use from several threads."""

    def __init__(self, tokenizer: Any) -> None:
        """tokenizer: a fast Hugging Face tokenizer with a chat template."""
        self._template = tokenizer
        self._knows_tools = knows_tools(str(tokenizer.chat_template))
        self.arguments_key = "parameters" if self._knows_tools else "arguments"  # of a call, as it is written
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

    @classmethod
    def load(cls, directory: Path) -> "Prompt":
        from transformers import AutoTokenizer  # seconds to import

        return cls(AutoTokenizer.from_pretrained(directory, local_files_only=True))

    def encode(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
        """Token ids up to where the assistant's answer begins.

        Raises: InvalidRequest if the template refuses the conversation.
        """
        given = template_input(messages, tools, self._knows_tools)
        if not any(self._control_pattern.search(text) for text in _texts(given)):
            return _ids(self._encode, self._render(given))
        return self._encode_with_literals(given)

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a text without a template, with what the tokenizer itself puts around it."""
        return _ids(self._encode_plain, text, add_special_tokens=True)

    def token_bytes(self, id: int) -> bytes:
        """What the token stands for; a part of a character may be a token."""
        token = self._encode.id_to_token(id)
        if token is None:  # the model's vocabulary can be padded beyond the tokenizer's
            return b""
        if self._byte_level and token not in self._control and all(c in _BYTE_OF for c in token):
            return bytes(_BYTE_OF[c] for c in token)
        text: str = self._encode.decode([id], skip_special_tokens=False)
        return text.encode()

    def _encode_with_literals(self, given: dict[str, Any]) -> list[int]:
        """As `encode`, where a message spells out a control token.

        Such a token is broken by an unguessable mark while the template runs, so the control
        tokens still whole in the result are the template's own; then the marks go.
        """
        mark = secrets.token_hex(16)
        broken = _changed(
            given, lambda text: self._control_pattern.sub(lambda m: m[0][0] + mark + m[0][1:], text)
        )
        ids: list[int] = []
        # A pattern in brackets is split at and kept: text and control tokens take turns.
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
                tools=given["tools"],
                tokenize=False,
                add_generation_prompt=True,
                date_string=TEMPLATE_DATE,
            )
        except jinja2.TemplateError as error:
            raise InvalidRequest(
                f"The model's chat template refuses these messages: {error}", param="messages"
            ) from None
        return text


def _ids(tokenizer: Any, text: str, *, add_special_tokens: bool = False) -> list[int]:
    """By encode_batch: while `encode` runs, no other thread does, and a long text takes a second."""
    ids: list[int] = tokenizer.encode_batch([text], add_special_tokens=add_special_tokens)[0].ids
    return ids


def _byte_of() -> dict[str, int]:
    """Byte-level BPE's alphabet: printable bytes are themselves, the others come after U+0100 in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_of()


def _texts(value: Any) -> Iterator[str]:
    """Every string in a JSON value, names included."""
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
    """A JSON value with every string in it changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(name): _changed(part, change) for name, part in value.items()}
    if isinstance(value, list):
        return [_changed(part, change) for part in value]
    return value

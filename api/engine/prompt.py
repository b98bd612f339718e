"""Messages → token ids, by the artifact's own chat template.

Text from a client never becomes a control token: `<|im_end|>` inside a message is encoded as the
characters it is made of. The tokenizer adds nothing; a BOS is there if the template prints one.
"""

import json
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from tokenizers import Tokenizer

from api.errors import InvalidRequest
from api.schema.chat import ChatMessage

# Llama 3's template prints a date. Training rows were rendered with this one, the template's own
# default, so the same conversation always has the same tokens.
TEMPLATE_DATE = "26 Jul 2024"


class Prompt:
    """The template and tokenizer of one model; safe to use from several threads."""

    def __init__(self, tokenizer: Any) -> None:
        """tokenizer: a fast Hugging Face tokenizer with a chat template."""
        self._template = tokenizer
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

    def encode(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Token ids up to where the assistant's answer begins.

        Raises: InvalidRequest if the template refuses the conversation.
        """
        turns = [(_role(message), message.text()) for message in messages]
        if not any(self._control_pattern.search(text) for _, text in turns):
            ids: list[int] = self._encode.encode(self._render(turns), add_special_tokens=False).ids
            return ids
        return self._encode_with_literals(turns)

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a text without a template, with what the tokenizer itself puts around it."""
        ids: list[int] = self._encode_plain.encode(text, add_special_tokens=True).ids
        return ids

    def token_bytes(self, id: int) -> bytes:
        """What the token stands for; a part of a character may be a token."""
        token = self._encode.id_to_token(id)
        if token is None:  # the model's vocabulary can be padded beyond the tokenizer's
            return b""
        if self._byte_level and token not in self._control and all(c in _BYTE_OF for c in token):
            return bytes(_BYTE_OF[c] for c in token)
        text: str = self._encode.decode([id], skip_special_tokens=False)
        return text.encode()

    def _encode_with_literals(self, turns: list[tuple[str, str]]) -> list[int]:
        """As `encode`, where a message spells out a control token.

        Such a token is broken by an unguessable mark while the template runs, so the control
        tokens still whole in the result are the template's own; then the marks go.
        """
        mark = secrets.token_hex(16)
        broken = [
            (role, self._control_pattern.sub(lambda m: m[0][0] + mark + m[0][1:], text))
            for role, text in turns
        ]
        ids: list[int] = []
        for piece in self._control_pattern.split(self._render(broken)):
            if piece in self._control:
                ids.append(self._control[piece])
            elif piece:
                plain = piece.replace(mark, "")
                ids += self._encode_plain.encode(plain, add_special_tokens=False).ids
        return ids

    def _render(self, turns: list[tuple[str, str]]) -> str:
        try:
            text: str = self._template.apply_chat_template(
                [{"role": role, "content": text} for role, text in turns],
                tokenize=False,
                add_generation_prompt=True,
                date_string=TEMPLATE_DATE,
            )
        except jinja2.TemplateError as error:
            raise InvalidRequest(
                f"The model's chat template refuses these messages: {error}", param="messages"
            ) from None
        return text


def _byte_of() -> dict[str, int]:
    """Byte-level BPE's alphabet: printable bytes are themselves, the others come after U+0100 in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_of()


def _role(message: ChatMessage) -> str:
    """OpenAI's newer name of the system role is unknown to chat templates."""
    return "system" if message.role == "developer" else message.role

"""Messages → token ids, by the artifact's own chat template.

Text from a client never becomes a control token: `<|im_end|>` inside a message is encoded as the
characters it is made of. The tokenizer adds nothing; a BOS is there if the template prints one.
"""

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


def _role(message: ChatMessage) -> str:
    """OpenAI's newer name of the system role is unknown to chat templates."""
    return "system" if message.role == "developer" else message.role

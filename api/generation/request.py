"""A request in no dialect's format: prompts, how to answer them, and what an answer may be."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from api.engine.context import require_known_tokens
from api.engine.messages import Layout, Message, Tool
from api.engine.prompt import Prompt
from api.engine.sampling import Sampling
from api.engine.thinking import Thinks
from api.errors import InvalidRequest
from api.generation.answer_schema import AnswerSchema, Format, Offer

# For echo with logprobs the engine holds a logit for each token of a prompt and of the vocabulary at once, up
# to 11 bytes each in copies, which it has not planned for: 1.4 GiB.
MAX_ECHO_LOGITS = 2**27
# Variables that clients set for every model: a template that lacks one does the same without it.
_OF_OTHER_TEMPLATES = frozenset({"enable_thinking", "thinking", "preserve_thinking", "reasoning_effort"})


class FieldNames(NamedTuple):
    """The dialect's names for the fields that an error may blame."""

    prompt: str
    max_tokens: str
    format: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages, oldest first, that the model's chat template renders.

    values_field: the dialect's name for the template's variables in `layout`. thinking_fields: its names for
    the fields that ask for `layout.thinking`. limit_fields: and for those that limit the thinking.
    earlier_thinking: and for those with the thinking of messages.
    """

    messages: Sequence[Message]
    layout: Layout = field(default_factory=Layout)
    values_field: str = "chat_template_kwargs"
    thinking_fields: Collection[str] = ()
    limit_fields: Collection[str] = ()
    earlier_thinking: Collection[str] = ()

    def require_known_values(self, known: Collection[str]) -> None:
        """Raises: InvalidRequest if a request sets a variable that the template does not have."""
        for name in self.layout.values:
            if name not in known and name not in _OF_OTHER_TEMPLATES:
                has = ", ".join(sorted(known)) or "none that a request may set"
                raise InvalidRequest(
                    f"{self.values_field}.{name}: the model's template has no such variable; it has {has}.",
                    param=f"{self.values_field}.{name}",
                )

    def encode(self, prompt: Prompt, tools: Sequence[Tool]) -> tuple[list[int], bool]:
        """Return the token ids, and whether roles were changed because the template refuses their order.

        Raises: InvalidRequest if it refuses the conversation in any order.
        """
        try:
            return prompt.encode(self.messages, tools, self.layout), False
        except InvalidRequest:
            return prompt.encode(self.messages, tools, self.layout, ordered=True), True

    def unused(self, prompt: Prompt, field: str) -> Iterator[str]:
        """Yield the names of what the template has no place for. field: the dialect's name for messages."""
        if any(each.name is not None and each.role not in prompt.named_roles for each in self.messages):
            yield f"{field}.name"
        for name in self.layout.values:
            if name not in prompt.variables:
                yield f"{self.values_field}.{name}"
        if not prompt.heeds(self.layout):
            yield from self.thinking_fields
        if prompt.thinking is None or not prompt.thinking.can_be_limited:
            yield from self.limit_fields
        if prompt.thinking is None or prompt.thinking.key is None:
            yield from self.earlier_thinking

    def thinks(self, prompt: Prompt, ids: list[int]) -> Thinks | None:
        """Return how an answer thinks, or None if it does not. ids: the rendered prompt."""
        return prompt.begins(ids, self.messages[-1].text if self.layout.continued else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One request. Every prompt gets as many answers as `sampling` says.

    prompts: a conversation, texts without a template, or token ids. max_tokens: None for as many as fit.
    logprobs: alternatives to return with each token's own logprob; None for no logprobs at all.
    offer: functions that an answer may call. format: what it must obey if it calls none.
    usage_in_chunks: a stream's events carry the usage so far. echo: an answer begins with its
    prompt, which is a text or token ids. unused: names of fields that the dialect does not use.
    show_thinking: the answer has its thinking, too.
    """

    model: str
    prompts: Sequence[Conversation | str | list[int]]
    sampling: Sampling
    max_tokens: int | None
    stream: bool
    fields: FieldNames
    logprobs: int | None = None
    offer: Offer = field(default_factory=Offer)
    format: Format | None = None
    usage_in_chunks: bool = False
    echo: bool = False
    unused: Collection[str] = ()
    show_thinking: bool = True

    @property
    def answers(self) -> int:
        """Return the number of answers to all prompts together."""
        return len(self.prompts) * self.sampling.choices

    @property
    def answers_field(self) -> str:
        """Return the field that asks for more than one answer."""
        return "n" if self.sampling.choices > 1 else self.fields.prompt

    def require_known_tokens(self, vocab_size: int) -> None:
        """Raises: InvalidRequest if the request has a token id that the model does not have."""
        require_known_tokens("stop_token_ids", self.sampling.stop_token_ids or (), vocab_size)
        require_known_tokens("logit_bias", self.sampling.logit_bias or (), vocab_size)
        for prompt in self.prompts:
            if isinstance(prompt, list):
                require_known_tokens(self.fields.prompt, prompt, vocab_size)

    def require_reachable(self, context: int) -> None:
        """Raises: InvalidRequest if answers must have more tokens than they may have."""
        most = min(self.max_tokens or context, context)
        if (self.sampling.min_tokens or 0) > most:
            raise InvalidRequest(
                f"min_tokens: an answer may have at most {most} tokens, not {self.sampling.min_tokens}.",
                param="min_tokens",
            )

    def encode(self, prompt: Prompt) -> tuple[list[list[int]], set[str]]:
        """Return the token ids of every prompt, and the names of fields that change nothing with this model.

        Takes milliseconds for a long prompt.
        Raises: InvalidRequest if the template refuses a conversation, or a prompt has no token.
        """
        encoded, ignored = [], self._ignored(prompt)
        for given in self.prompts:
            if isinstance(given, Conversation):
                given.require_known_values(prompt.variables)
                ids, ordered = given.encode(prompt, self.offer.tools)
                if ordered:
                    ignored.add(f"{self.fields.prompt}.role")
            else:
                ids = prompt.encode_text(given) if isinstance(given, str) else given
            if not ids:
                raise InvalidRequest("A prompt must have at least one token.", param=self.fields.prompt)
            encoded.append(ids)
        return encoded, ignored

    def thinks(self, prompt: Prompt, prompts: Sequence[list[int]]) -> Thinks | None:
        """Return how the answers think, or None if they do not. prompts: as `encode` has rendered them."""
        given = self.prompts[0]
        return given.thinks(prompt, prompts[0]) if isinstance(given, Conversation) else None

    def require_echoable(self, prompts: Sequence[list[int]], vocab_size: int) -> None:
        """Raises: InvalidRequest if the logprobs of a prompt need more memory than the engine has left."""
        most = MAX_ECHO_LOGITS // vocab_size
        longest = max(map(len, prompts))
        if self.echo and self.logprobs is not None and longest > most:
            raise InvalidRequest(
                f"logprobs: with echo a prompt may have at most {most} tokens, not {longest}.",
                param="logprobs",
            )

    def echoes(self, prompt: Prompt) -> list[str]:
        """Return the text that each answer begins with."""
        if not self.echo:
            return [""] * self.answers
        texts = [prompt.text(given) if isinstance(given, list) else str(given) for given in self.prompts]
        return [text for text in texts for _ in range(self.sampling.choices)]

    def _ignored(self, prompt: Prompt) -> set[str]:
        talks = [given for given in self.prompts if isinstance(given, Conversation)]
        return {*self.unused, *(name for each in talks for name in each.unused(prompt, self.fields.prompt))}

    def answer_schema(self, prompt: Prompt) -> AnswerSchema | None:
        """Return the schema that an answer must obey, or None if it may be any text.

        Raises: InvalidRequest if it cannot be enforced.
        """
        schema = self.offer.answer_schema(self.format, self.fields.format, prompt)
        if schema:
            self._require_end_by_schema(schema.param)
        return schema

    def _require_end_by_schema(self, param: str) -> None:
        """Raises: InvalidRequest if an answer may end before it obeys its schema, or may not end after it."""
        if self.sampling.stop_token_ids:
            raise InvalidRequest(
                f"stop_token_ids: they could end an answer before it obeys {param}.", param="stop_token_ids"
            )
        for name in ("min_tokens", "ignore_eos"):
            if getattr(self.sampling, name):
                raise InvalidRequest(
                    f"{name}: an answer that obeys {param} ends where the schema ends.", param=name
                )

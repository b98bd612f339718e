"""Adapt conversations to the base's chat template: system prompts, thinking, and the trained answers."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from trainer.config_data import DataConfig
from trainer.data.chat_template import without_thinking
from trainer.data.clean import Cleaned
from trainer.data.conversation import Conversation, Message
from trainer.data.select import Selected
from trainer.data.shapes import RowError
from trainer.data.template_traits import Traits, split_thought, thought
from trainer.errors import DataError

UNREAD = "messages.reasoning_content"


def adapt(selected: Selected, data: DataConfig, traits: Traits) -> list[str]:
    """Adapt the conversations, and return what was done, as sentences.

    Drop those that cannot be adapted. Raises: DataError if the template cannot do what `data.thinking` asks,
    or if no row is left.
    """
    done: Counter[str] = Counter()
    cleaned = selected.cleaned
    cleaned.conversations = _adapted(cleaned.conversations, cleaned, data, traits, done)
    for side, rows in selected.own.items():
        selected.own[side] = _adapted(rows, cleaned, data, traits, done)
    return list(_sentences(done, data, traits))


def _adapted(
    conversations: list[Conversation], cleaned: Cleaned, data: DataConfig, traits: Traits, done: Counter[str]
) -> list[Conversation]:
    kept = []
    for conversation in conversations:
        try:
            placed = _place_system(conversation, data, traits, done)
            placed = _place_thinking(placed, cleaned, data, traits, done)
            kept.append(_last_answer(placed) if data.answers == "last" else placed)
        except RowError as reason:
            cleaned.drop(str(reason), conversation.where)
    if not kept:
        raise DataError(f"no row is left to use: {cleaned.summary()}")
    return kept


def _place_system(
    conversation: Conversation, data: DataConfig, traits: Traits, done: Counter[str]
) -> Conversation:
    """Move a system prompt that the template has no place for into the first question. Raises: RowError."""
    system, *others = conversation.messages
    if not traits.system or system.role != "system":
        return conversation
    if data.refused_system == "drop":
        raise RowError(f"system prompt: {traits.system}")
    done["system"] += 1
    question = replace(others[0], content=f"{system.content}\n\n{others[0].content}")
    return replace(conversation, messages=(question, *others[1:]))


def _place_thinking(
    conversation: Conversation, cleaned: Cleaned, data: DataConfig, traits: Traits, done: Counter[str]
) -> Conversation:
    """Return the conversation with its thinking where `data.thinking` wants it. Raises: DataError."""
    messages = conversation.messages
    if not any(_may_think(message) for message in messages):
        return conversation
    if data.thinking == "strip" or (data.thinking == "template" and traits.closes):
        done["left out"] += 1
        return replace(conversation, messages=tuple(map(without_thinking, messages)))
    if data.thinking == "template" and not traits.has_thinking:
        if any(message.reasoning for message in messages):
            cleaned.account(conversation.where).unread[UNREAD] += 1
        return replace(conversation, messages=tuple(replace(message, reasoning="") for message in messages))
    if traits.closes or not (traits.has_thinking or traits.in_text):
        raise DataError(
            f"data.thinking is {data.thinking}, but this chat template has no place for thinking: use "
            "`template` or `strip`, or set data.chat_template to one that has"
        )
    if data.thinking == "keep" and not traits.keeps and any(map(_may_think, messages[:-1])):
        raise DataError(
            "data.thinking is keep, but this chat template leaves out the thinking of earlier answers, in "
            "serving too: use `template` or `last`, or set data.chat_template to one that keeps it"
        )
    return replace(conversation, messages=tuple(_with_thinking(message, traits) for message in messages))


def _may_think(message: Message) -> bool:
    return message.role == "assistant" and bool(message.reasoning or split_thought(message.content)[0])


def _with_thinking(message: Message, traits: Traits) -> Message:
    """Return an answer with its thinking in the field that the template reads, or in its text."""
    found, rest = split_thought(message.content)
    thinking = message.reasoning or found
    if not thinking or message.role != "assistant":
        return message
    if traits.has_thinking:
        return replace(message, content=rest, reasoning=thinking)
    return replace(message, content=thought(thinking, rest), reasoning="")


def _last_answer(conversation: Conversation) -> Conversation:
    """Return the conversation with its last answer as the only trained one. Raises: RowError."""
    *before, last = conversation.messages
    if not last.trained:
        raise RowError("the last answer has weight 0")
    earlier = (replace(m, trained=False) if m.role == "assistant" else m for m in before)
    return replace(conversation, messages=(*earlier, last))


def _sentences(done: Counter[str], data: DataConfig, traits: Traits) -> Iterator[str]:
    if count := done["system"]:
        yield f"{_counted(count, 'system prompt')} moved into the first question ({traits.system})"
    if count := done["left out"]:
        why = "data.thinking: strip" if data.thinking == "strip" else "this chat template's prompts end it"
        yield f"{_counted(count, 'conversation')} left without thinking ({why})"


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"

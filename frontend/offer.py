"""Decide what the page offers for a model: its purpose, prompts to try, and the longest answer.

The operator's settings come first, then what the API says of the model, then defaults that suit any model.
"""

import html
from dataclasses import dataclass

import texts
from client import Model
from conversations import Chat
from settings import DEFAULT_EXAMPLES, Example, Settings

LONGEST_UNKNOWN = 4096  # tokens, if neither the API nor the settings have the model's context
LENGTH_STEP = 16


@dataclass(frozen=True)
class Offer:
    """intro: Markdown. context_tokens: None if it is not known."""

    intro: str
    examples: tuple[Example, ...]
    context_tokens: int | None

    @property
    def longest_answer(self) -> int:
        """The upper end of the answer length, in tokens."""
        return self.context_tokens or LONGEST_UNKNOWN

    def max_tokens(self, chosen: int) -> int | None:
        """Return the limit to send with a question; None for all that the context leaves.

        A limit of the whole context leaves no room for the question, so an API would refuse it.
        """
        at_the_end = self.context_tokens is not None and chosen + LENGTH_STEP > self.context_tokens
        return None if at_the_end else chosen

    def to_follow(self, chat: Chat) -> list[Example]:
        """Return what to try next: the other examples, as long as the reader asks nothing else."""
        asked = {entry["content"] for entry in chat["entries"] if entry["role"] == "user"}
        left = [example for example in self.examples if example.prompt not in asked]
        return left if asked <= {example.prompt for example in self.examples} else []


def offer_of(model: Model | None, settings: Settings) -> Offer:
    """Return what to offer for `model`; None if the API has not said which models it has."""
    described = html.escape(model.description) if model else ""
    prompts = model.examples if model else ()
    return Offer(
        settings.intro or described or texts.INTRO,
        settings.examples or tuple(map(_example, prompts)) or DEFAULT_EXAMPLES,
        (model and model.context_tokens) or settings.context_tokens,
    )


def _example(prompt: str) -> Example:
    """Show the prompt itself, without its empty lines."""
    lines = [line for line in prompt.splitlines() if line.strip()]
    return Example(title="\n".join(lines), prompt=prompt)

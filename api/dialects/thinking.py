"""Read what a request asks about thinking, from the fields of several APIs."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from api.dialects import other_fields as known
from api.dialects.fields import INT64_MAX
from api.dialects.rules import Strict
from api.engine.messages import Layout

# A template may read it, so it may not contain a control token.
Effort = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
NO_EFFORT = "none"
Limit = Annotated[
    int | None,
    Field(ge=0, le=INT64_MAX, description="The most tokens of thinking, where they can be limited."),
]
EarlierThinking = Annotated[
    str | None, Field(description="Of an earlier answer; ignored if the template has no place for it.")
]


class Reasoning(Strict):
    """OpenAI's field of responses, with `enabled` and `exclude` of OpenRouter's chat."""

    other_fields = known.REASONING

    effort: Effort | None = Field(None, description="`none` turns thinking off, where the template can.")
    enabled: bool | None = None
    exclude: bool | None = Field(None, description="The answer comes without its thinking.")
    max_tokens: Limit = None


class ThinkingChoice(Strict):
    """Anthropic's field of messages, which DeepSeek and others have in chat."""

    other_fields = known.THINKING

    type: Literal["enabled", "disabled", "adaptive", "auto", "between_tools"]
    budget_tokens: Limit = None
    display: Literal["summarized", "updates", "omitted"] | None = Field(
        None, description="`omitted`: the answer comes without its thinking."
    )

    @property
    def on(self) -> bool:
        return self.type != "disabled"

    @property
    def limit_fields(self) -> list[str]:
        """Return the name of the field that limits the thinking, if it is given."""
        return [] if self.budget_tokens is None else ["thinking.budget_tokens"]


class ThinkingFields(Strict):
    """Fields of chat and responses. Those that the model's template cannot follow are ignored."""

    enable_thinking: bool | None = Field(
        None, description="Turns thinking on or off; ignored and named if the template cannot."
    )
    thinking: ThinkingChoice | None = Field(None, description="Likewise.")
    reasoning: Reasoning | None = None
    thinking_token_budget: int | None = Field(
        None, ge=-1, le=INT64_MAX, description="Likewise; -1: no limit. It goes before the other two."
    )
    include_reasoning: bool | None = Field(None, description="false: the answer comes without its thinking.")

    def thinking_layout(self, effort: str | None = None) -> Layout:
        """Return what the request asks of the template; the first field that says something decides."""
        effort = effort or (self.reasoning.effort if self.reasoning else None)
        says = (
            self.enable_thinking,
            self.thinking.on if self.thinking else None,
            self.reasoning.enabled if self.reasoning else None,
            effort != NO_EFFORT if effort else None,
        )
        return Layout(thinking=next((on for on in says if on is not None), None), effort=effort)

    def thinking_fields(self) -> list[str]:
        """Return the names of the fields that ask for it."""
        reasoning = self.reasoning
        asks = {
            "enable_thinking": self.enable_thinking is not None,
            "thinking": self.thinking is not None,
            "reasoning": reasoning is not None and (reasoning.effort or reasoning.enabled) is not None,
        }
        return [name for name, given in asks.items() if given]

    def thinking_tokens(self) -> int | None:
        """Return the most tokens of thinking; None for no limit."""
        given = [limit for limit in self._limits().values() if limit is not None]
        return given[0] if given and given[0] >= 0 else None

    def limit_fields(self) -> list[str]:
        """Return the names of the fields that limit the thinking."""
        return [name for name, limit in self._limits().items() if limit is not None]

    def _limits(self) -> dict[str, int | None]:
        return {
            "thinking_token_budget": self.thinking_token_budget,
            "thinking.budget_tokens": self.thinking.budget_tokens if self.thinking else None,
            "reasoning.max_tokens": self.reasoning.max_tokens if self.reasoning else None,
        }

    def shows_thinking(self) -> bool:
        """Return whether the answer has its thinking."""
        omitted = self.thinking is not None and self.thinking.display == "omitted"
        excluded = self.reasoning is not None and bool(self.reasoning.exclude)
        return self.include_reasoning is not False and not (omitted or excluded)

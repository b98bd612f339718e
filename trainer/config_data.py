"""Describe the settings of `data`, and what every part of a configuration has in common.

`config` has the other parts.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationInfo,
    field_validator,
    model_validator,
)

from trainer.source_name import HUB, HubName, at_commit, public_source

CONFIGS = Path(__file__).parent / "configs"
Trained = Literal["assistant", "tool_calls"]
TRAINED: tuple[Trained, ...] = ("assistant", "tool_calls")


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_verdict_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `near_duplicates: true`, which would be read as 1.0."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and {int, float} & {annotation, *get_args(annotation)}:
            raise ValueError(f"expected a number, got {'true' if value else 'false'}")
        return value


class GeneralChatConfig(Frozen):
    """Rows that keep and measure general chat: the base model's own answers to our prompts.

    With `top_tokens` training follows the base's probabilities of its most likely tokens at each place of an
    answer (KL), and not only the token that was sampled. That needs `train.engine: plain`.
    """

    prompts: Path = CONFIGS / "general_prompts.txt"
    train_prompts: int = Field(ge=0)
    test_prompts: int = Field(ge=1)
    max_new_tokens: int = Field(ge=8, le=1024)
    top_tokens: int | None = Field(None, ge=2, le=1024)


class ChatsConfig(Frozen):
    """Join rows of one turn into conversations, which teach and measure later turns.

    A conversation of train has one to `turns` turns, and `general_share` of all turns are prompts of
    `data.general` with the base's answers. A held-out conversation has `turns` turns, all from the source.
    Rows of several turns, or with a system prompt, stay as they are.
    """

    turns: int = Field(ge=2, le=16)
    general_share: float = Field(0.0, ge=0, lt=1)


class DataFilters(Frozen):
    """Filters on rows. Each dropped row is counted by its reason. None or empty: no such filter."""

    min_score: float | None = Field(None, description="Rows without a score are dropped too.")
    max_score: float | None = Field(None, description="Rows without a score are dropped too.")
    min_characters: int | None = Field(None, ge=1, description="Over all turns of a row.")
    max_characters: int | None = Field(None, ge=1, description="Over all turns of a row.")
    only_sources: tuple[str, ...] = ()
    without_sources: tuple[str, ...] = ()
    languages: tuple[str, ...] = Field((), description="ISO 639-1. Rows surely in another are dropped.")

    @model_validator(mode="after")
    def _something_can_pass(self) -> "DataFilters":
        for what in ("score", "characters"):
            least, most = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if least is not None and most is not None and least > most:
                raise ValueError(f"min_{what} {least} is over max_{what} {most}: no row can pass")
        if both := set(self.only_sources) & set(self.without_sources):
            raise ValueError(f"{', '.join(sorted(both))}: both in only_sources and in without_sources")
        return self


class ColumnsConfig(Frozen):
    """Which columns hold a row's question and answer, where their names do not say so.

    `context` follows the question after a blank line. `thinking` is the answer's.
    """

    prompt: str = Field(min_length=1)
    response: str = Field(min_length=1)
    system: str | None = None
    context: str | None = None
    thinking: str | None = None


class SourceConfig(Frozen):
    """One source of rows. A source that is only a name may be written as that name.

    weight: the share of its usable rows that is used. Under 1 it is a sample, drawn by hash. Over 1 train
    has its rows that many times; held-out sides have each row once, so that their rows are independent.
    """

    source: str = Field(
        min_length=1,
        description="`stdlib-docs`, `hub:OWNER/NAME:SUBSET@REVISION#SPLIT`, or a file or folder.",
    )
    weight: float = Field(1.0, gt=0, le=100)
    columns: ColumnsConfig | None = Field(None, description="None: `data.columns`.")

    @field_validator("source")
    @classmethod
    def _of_a_known_form(cls, source: str) -> str:
        if source.startswith(HUB):
            HubName.parse(source)
        return source

    def plain(self) -> "str | dict[str, Any]":
        """Return the source as a person writes it: its name where it has nothing else."""
        found = self.model_dump(mode="json", exclude_defaults=True)
        return self.source if found == {"source": self.source} else found


def _as_sources(value: Any) -> Any:
    """Return one source or several as a list of mappings, for pydantic."""
    if value is None:
        return ()
    items = value if isinstance(value, list | tuple) else [value]
    return tuple({"source": item} if isinstance(item, str) else item for item in items)


def _plain_sources(sources: tuple[SourceConfig, ...]) -> Any:
    return sources[0].plain() if len(sources) == 1 else [source.plain() for source in sources]


Sources = Annotated[tuple[SourceConfig, ...], BeforeValidator(_as_sources), PlainSerializer(_plain_sources)]


class DataConfig(Frozen):
    source: Sources = Field(min_length=1, description="One source, or a list of them.")
    validation: Sources = Field(
        (), description="Sources of the validation rows. Empty: a split of `source` itself, or made from it."
    )
    test: Sources = Field((), description="Sources of the test rows. Empty: as for `validation`.")
    columns: ColumnsConfig | None = None
    roles: dict[str, Literal["system", "user", "assistant", "tool"]] = Field(
        {}, description="Roles that the data set names in its own way, such as `{bot: assistant}`."
    )
    ignore_columns: tuple[str, ...] = Field(
        (), description="Columns, or fields of messages, to leave out although they change what a row means."
    )
    use: Literal["chosen"] | None = Field(
        None,
        description="`chosen`: of preference data train the answers that people chose or praised. None: such "
        "data is refused.",
    )
    chat_template: Path | None = Field(
        None,
        description="A Jinja file in place of the base's chat template, for rows, evaluation and artifact.",
    )
    thinking: Literal["template", "keep", "strip", "last"] = Field(
        "template",
        description="Thinking of answers: what the chat template does with it in serving; kept in all "
        "answers; left out; or only in the answer that is trained, without that of the answers before it.",
    )
    answers: Literal["all", "last"] = Field("all", description="Answers of a conversation that are trained.")
    refused_system: Literal["into_question", "drop"] = Field(
        "into_question",
        description="System prompts that the chat template has no place for: they move into the first "
        "question, or their rows are dropped.",
    )
    train_on: tuple[Trained, ...] = Field(
        TRAINED, min_length=1, description="`assistant`: answers of text. `tool_calls`: answers with calls."
    )
    max_length: int = Field(ge=32, le=131072, description="Tokens per row. Longer rows are dropped.")
    held_out_share: float = Field(0.1, gt=0, le=0.3, description="Share of the groups in each held-out side.")
    train_rows: int | None = Field(None, ge=1, description="Maximum. None: all that the split leaves.")
    validation_rows: int = Field(ge=1, description="Maximum.")
    test_rows: int = Field(ge=1, description="Maximum.")
    general: GeneralChatConfig | None = None
    chats: ChatsConfig | None = None
    filters: DataFilters = DataFilters()
    near_duplicates: float | None = Field(
        None, ge=0.5, le=1, description="Drop rows whose Jaccard similarity to a kept row is at least this."
    )
    contamination: tuple[Path, ...] = Field(
        (), description="Evaluation files. Rows that share 13 consecutive words with one are dropped."
    )

    @model_validator(mode="after")
    def _sources_are_fit(self) -> "DataConfig":
        for name in ("source", "validation", "test"):
            listed = [source.source for source in getattr(self, name)]
            if twice := {source for source in listed if listed.count(source) > 1}:
                raise ValueError(f"`{name}` lists {', '.join(sorted(twice))} twice: `weight: 2` repeats rows")
        if weighted := [s.source for s in (*self.validation, *self.test) if s.weight != 1]:
            raise ValueError(f"{weighted[0]}: `weight` belongs to `source`; held-out rows count once")
        return self

    @model_validator(mode="after")
    def _general_turns_need_prompts(self) -> "DataConfig":
        if self.chats and self.chats.general_share and not (self.general and self.general.train_prompts):
            raise ValueError("`chats.general_share` needs `general.train_prompts`")
        return self


def describe_sources(data: DataConfig, public: bool = False, commits: Mapping[str, str] | None = None) -> str:
    """Return the sources in words, such as `a.jsonl, hub:o/n (weight 0.5); test: b.jsonl`.

    public: as they may be published, without this machine's folders. commits: source → its commit on the Hub,
    which stands in place of a branch or tag.
    """
    described = []
    for side in ("source", "validation", "test"):
        names = [
            at_commit(public_source(s.source) if public else s.source, (commits or {}).get(s.source))
            + (f" (weight {s.weight:g})" if s.weight != 1 else "")
            for s in getattr(data, side)
        ]
        if names:
            described.append((f"{side}: " if side != "source" else "") + ", ".join(names))
    return "; ".join(described)

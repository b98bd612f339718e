"""Every field and type of the anthropic package's requests is honoured, ignored or refused by a table."""

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import pytest
from anthropic import types
from anthropic.types import beta
from pydantic import BaseModel
from typing_extensions import get_type_hints, is_typeddict

from api.dialects.messages import schema
from api.dialects.rules import Strict, parts_of
from api.dialects.thinking import ThinkingChoice

PARTS = [
    (types.message_create_params.MessageCreateParamsStreaming, schema.MessageRequest),
    (beta.message_create_params.MessageCreateParamsStreaming, schema.MessageRequest),
    (types.MessageCountTokensParams, schema.PromptRequest),
    (beta.MessageCountTokensParams, schema.PromptRequest),
    *((each, schema.InputMessage) for each in get_args(types.MessageParam)),
    *((each, schema.InputMessage) for each in get_args(beta.BetaMessageParam)),
    (types.TextBlockParam, schema.TextBlock),
    (beta.BetaTextBlockParam, schema.TextBlock),
    (types.ThinkingBlockParam, schema.ThinkingBlock),
    (beta.BetaThinkingBlockParam, schema.ThinkingBlock),
    *((each, ThinkingChoice) for each in get_args(types.ThinkingConfigParam)),
    *((each, ThinkingChoice) for each in get_args(beta.BetaThinkingConfigParam)),
    (types.ToolUseBlockParam, schema.ToolUseBlock),
    (beta.BetaToolUseBlockParam, schema.ToolUseBlock),
    (types.ToolResultBlockParam, schema.ToolResultBlock),
    (beta.BetaToolResultBlockParam, schema.ToolResultBlock),
    (types.ToolParam, schema.ToolDefinition),
    (beta.BetaToolParam, schema.ToolDefinition),
    *((each, schema.ToolChoice) for each in get_args(types.ToolChoiceParam)),
    *((each, schema.ToolChoice) for each in get_args(beta.BetaToolChoiceParam)),
    (types.OutputConfigParam, schema.OutputConfig),
    (beta.BetaOutputConfigParam, schema.OutputConfig),
    (types.JSONOutputFormatParam, schema.OutputFormat),
    (beta.BetaJSONOutputFormatParam, schema.OutputFormat),
]
BLOCKS = (schema.TextBlock, schema.ThinkingBlock, schema.ToolUseBlock, schema.ToolResultBlock)
UNIONS = [
    (types.ThinkingConfigParam, (ThinkingChoice,)),
    (beta.BetaThinkingConfigParam, (ThinkingChoice,)),
    (beta.beta_system_message_param.ContentBlock, (schema.TextBlock,)),
    (types.ContentBlockParam, BLOCKS),
    (beta.BetaContentBlockParam, BLOCKS),
    (types.tool_result_block_param.Content, (schema.TextBlock,)),
    (beta.beta_tool_result_block_param.Content, (schema.TextBlock,)),
    (types.ToolUnionParam, (schema.ToolDefinition,)),
    (beta.BetaToolUnionParam, (schema.ToolDefinition,)),
]


@pytest.mark.parametrize(("typed", "model"), PARTS, ids=lambda part: part.__name__)
def test_every_field_is_in_a_list(typed: Any, model: type[Strict]) -> None:
    assert is_typeddict(typed)
    assert set(get_type_hints(typed)) - set(parts_of(model)) - set(model.other_fields) == set()


@pytest.mark.parametrize(("union", "models"), UNIONS)
def test_every_type_is_in_a_list(union: Any, models: tuple[type[Strict], ...]) -> None:
    known = {type for model in models for type in (*model.other_types, *types_of(model))}
    found = {type for member in get_args(union) for type in types_of(member)}
    assert found and found - known == set()


def types_of(described: Any) -> Iterator[str]:
    """Yield the values that the field `type` of a class or of a union of classes may have."""
    if not isinstance(described, type):
        for member in get_args(described):
            yield from types_of(member)
        return
    if issubclass(described, BaseModel):
        yield from _literals(described.model_fields["type"].annotation)
    else:
        yield from _literals(get_type_hints(described).get("type"))


def _literals(annotation: Any) -> Iterator[str]:
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
        return
    for argument in get_args(annotation):
        yield from _literals(argument)

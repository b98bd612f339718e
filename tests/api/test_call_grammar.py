"""Calls are forced in the form of the model's template, by the real grammar library, and read back."""

import json
import random
from typing import Any

import jsonschema
import numpy as np
import pytest
from llguidance import LLMatcher, LLTokenizer
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from api.engine.messages import Tool
from api.engine.prompt import Prompt
from api.generation.answer_schema import Offer
from tests.support.tool_form import FORMS, LAID_OUT

PLAIN = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "unit": {"enum": ["it's °C", "F"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "wet": {"type": "boolean"},
        "more": {
            "type": "array",
            "maxItems": 2,
            "items": {"type": "object", "properties": {"x": {"type": "null"}}},
        },
    },
    "required": ["city", "days"],
}  # fmt: skip
OPTIONAL = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"const": "c"}}}
# Text between tags cannot express this: a pattern, and a value that is a text or a number.
HARD = {
    "type": "object",
    "properties": {
        "code": {"type": "string", "pattern": "^[a-c]{2,3}$"},
        "either": {"anyOf": [{"enum": ["a", "1"]}, {"type": "integer", "maximum": 3, "minimum": 1}]},
    },
    "required": ["code", "either"],
}
ENDS = "'\"<]}),\n"  # characters that end texts, chosen often so that a random text has an end


def prompt_of(tokenizer: PreTrainedTokenizerFast, family: str) -> Prompt:
    return Prompt(
        PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()),
            eos_token="<|im_end|>",
            extra_special_tokens=["<|im_start|>", *FORMS[family].controls],
            chat_template=FORMS[family].template,
        )
    )


def written(matcher: Any, tokens: Any, choose: random.Random, closing: list[int]) -> list[int] | None:
    """Return a random text that the grammar allows, or None if it has no end in time.

    closing: ends a text in tags, tried often.
    """
    ids: list[int] = []
    matcher.reset()
    while len(ids) < 600:
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        possible = [int(id) for id in np.flatnonzero(bits)]
        if matcher.is_accepting() or possible == [tokens.eos_token]:
            return ids
        if closing and choose.random() < 0.3 and (begun := matcher.try_consume_tokens(closing)):
            ids += closing[:begun]
            continue
        ending = [id for id in possible if tokens.decode_str([id]) in ENDS]
        plain = [id for id in possible if tokens.decode_str([id]).isalnum()] or possible
        token = choose.choice(ending if ending and choose.random() < 0.4 else plain)
        matcher.consume_token(token)
        ids.append(token)
    return None


@pytest.mark.parametrize("schema", [PLAIN, OPTIONAL, HARD, None], ids=["plain", "optional", "hard", "none"])
@pytest.mark.parametrize("family", [*LAID_OUT, "without tools"])
def test_every_text_that_the_grammar_of_a_call_allows_is_read_as_that_call(
    tokenizer: PreTrainedTokenizerFast, family: str, schema: dict[str, Any] | None
) -> None:
    prompt = prompt_of(tokenizer, family)
    offer = Offer([Tool("other"), Tool("weather", None, schema)], None, "weather")
    made = offer.answer_schema(None, "", prompt)
    assert made is not None
    tokens = LLTokenizer(prompt._encode.to_str(), n_vocab=300, eos_token=258)
    grammar = LLMatcher.grammar_from_lark(f"start: answer\n{made.rules}")
    assert LLMatcher.validate_grammar(grammar) == "", "vLLM validates it without a tokenizer"
    matcher, choose, seen = LLMatcher(tokens, grammar), random.Random(0), 0
    closing = prompt._encode.encode(prompt.written.after, add_special_tokens=False).ids
    for _ in range(60):
        ids = written(matcher, tokens, choose, closing)
        assert not matcher.is_error(), matcher.get_error()
        if ids is None:
            continue
        seen += 1
        answer = prompt.text(ids)
        call = json.loads(offer.as_json(answer, prompt))
        assert call["name"] == "weather", answer
        jsonschema.validate(call["arguments"], schema or {"maxProperties": 0})
    assert seen > 5


@pytest.mark.parametrize("family", LAID_OUT)
def test_a_plain_call_is_forced_in_the_words_of_the_template(
    tokenizer: PreTrainedTokenizerFast, family: str
) -> None:
    prompt = prompt_of(tokenizer, family)
    schema = {"type": "object", "properties": {"n": {"const": "s"}}, "required": ["n"]}
    made = Offer([Tool("f", None, schema)], "required").answer_schema(None, "", prompt)
    assert made is not None
    call = {"id": "c", "function": {"name": "f", "arguments": '{"n": "s"}'}}
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]},
    ]  # fmt: skip
    form = prompt._tool_form
    assert form
    text = prompt._tried(form.laid_out(turns), [], False).rpartition("<|im_start|>assistant\n")[2]
    tokens = LLTokenizer(prompt._encode.to_str(), n_vocab=300, eos_token=258)
    matcher = LLMatcher(tokens, LLMatcher.grammar_from_lark(f"start: answer\n{made.rules}"))
    ids = prompt._encode.encode(text.removesuffix("<|im_end|>\n"), add_special_tokens=False).ids
    assert matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting(), text

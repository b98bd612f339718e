"""Schemas as pydantic, zod, OpenAPI and MCP tools write them, compiled by the real library.

client_schemas.jsonl has for each: who writes it, answers that conform and answers that do not, and for some
(`cannot`) what no grammar can enforce in it.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer
from transformers import PreTrainedTokenizerFast

from api.engine.grammar_worker import _check
from api.engine.json_schema import enforceable
from api.engine.messages import Tool
from api.engine.prompt import Prompt
from api.errors import InvalidRequest
from api.generation.answer_schema import Format, Offer

_LINES = Path(__file__).with_name("client_schemas.jsonl").read_text().splitlines()
CASES = [json.loads(line) for line in _LINES]
STRICT = [case for case in CASES if "cannot" not in case]
LOOSE = [case for case in CASES if "cannot" in case]


def name(case: dict[str, Any]) -> str:
    return f"{case['who']}: {case['what']}"


class Grammar:
    """A schema, or rules, as vLLM's guidance backend compiles it, without white space."""

    def __init__(self, schema: dict[str, Any] | str, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokens = from_tokenizer(tokenizer)
        if isinstance(schema, str):
            grammar = LLMatcher.grammar_from_lark(f"start: answer\n{schema}")
        else:
            grammar = LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_flexible": False})
        self._matcher = LLMatcher(self._tokens, grammar, log_level=0)
        assert not self._matcher.is_error(), self._matcher.get_error()

    def takes(self, answer: Any) -> bool:
        """Return whether the grammar allows every token of an answer, and its end after the last."""
        compact = json.dumps(answer, separators=(",", ":"), ensure_ascii=False)
        text = answer if isinstance(answer, str) else compact
        tokens = self._tokens.tokenize_str(text)
        self._matcher.reset()
        return self._matcher.try_consume_tokens(tokens) == len(tokens) and self._matcher.is_accepting()


@pytest.mark.parametrize("case", STRICT, ids=name)
def test_what_a_client_writes_is_enforced(case: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> None:
    found = enforceable(case["schema"], "response_format")
    assert found.whole
    grammar = Grammar(found.schema, tokenizer)
    assert [answer for answer in case["good"] if not grammar.takes(answer)] == []
    assert [answer for answer in case["bad"] if grammar.takes(answer)] == []


@pytest.mark.parametrize("case", LOOSE, ids=name)
def test_what_cannot_be_enforced_is_refused_by_name_or_checked(
    case: dict[str, Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(InvalidRequest, match="'strict': false") as refused:
        enforceable(case["schema"], "response_format")
    assert case["cannot"] in refused.value.message
    found = enforceable(case["schema"], "response_format", strict=False)
    assert not found.whole
    grammar = Grammar(found.schema, tokenizer)
    assert [answer for answer in case["good"] if not grammar.takes(answer)] == []
    text = json.dumps(case["schema"])
    assert [_check(json.dumps(answer), text) for answer in case["good"]] == [""] * len(case["good"])
    assert all(_check(json.dumps(answer), text) for answer in case["bad"])


def test_a_call_or_a_format_is_one_grammar_and_references_stay_their_own(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    tags = {"type": "object", "properties": {"tags": {"$ref": "#/$defs/T"}}, "required": ["tags"]}
    tags["$defs"] = {"T": {"type": "array", "items": {"type": "string"}, "uniqueItems": True}}
    leaf = {"type": "object", "properties": {"v": {"$ref": "#/$defs/T"}}, "required": ["v"]}
    leaf["$defs"] = {"T": {"type": "integer"}}
    prompt = Prompt(tokenizer)
    made = Offer([Tool("f", None, tags, strict=False), Tool("now")]).answer_schema(
        Format(leaf), "response_format", prompt
    )
    assert made is not None
    grammar = Grammar(made.rules, tokenizer)
    good = [{"name": "f", "arguments": {"tags": ["a"]}}, {"name": "now", "arguments": {}}, {"v": 1}]
    bad: list[Any] = [
        {"name": "f", "arguments": {"tags": 1}},
        {"name": "now", "arguments": {"a": 1}},
        {"v": "x"},
    ]
    twice = {"name": "f", "arguments": {"tags": ["a", "a"]}}
    said = [f"<tool_call>\n{json.dumps(a)}\n</tool_call>" if "name" in a else a for a in [*good, *bad, twice]]
    assert [grammar.takes(answer) for answer in said] == [True] * 3 + [False] * 3 + [True]
    assert [_check(json.dumps(answer), made.check) for answer in good] == [""] * 3
    assert all(_check(json.dumps(answer), made.check) for answer in [bad[0], bad[2], twice])
    assert Offer([Tool("now")], "required").answer_schema(None, "", prompt) is not None


@pytest.mark.parametrize("case", CASES, ids=name)
def test_the_check_of_an_answer_reads_every_schema_as_its_client_means_it(case: dict[str, Any]) -> None:
    text = json.dumps(case["schema"])
    assert [_check(json.dumps(answer), text) for answer in case["good"]] == [""] * len(case["good"])


def test_a_check_fetches_nothing_and_knows_nullable() -> None:
    assert _check("null", '{"type": "string", "nullable": true}') == ""
    with pytest.raises(Exception, match="Unresolvable"):
        _check("1", '{"$ref": "https://example.org/schema.json"}')

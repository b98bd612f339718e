"""`python -m api.engine.grammar_worker`: try JSON schemas and check answers, one request a line.

In: lines of {"directory": of the tokenizer, "vocab_size": N, "schema": JSON text, "rules": of a grammar in
place of the schema, or "", "closing": marker of the thinking before it or null} for a trial, or of {"schema":
JSON text, "answer": text} for a check. Out: a line for each. It is empty if the engine may have the schema,
or if the answer obeys it. If not, it is the reason.

Every request is a fork with its own limits; the kernel ends it when it exceeds them. A trial compiles the
schema with vLLM's library, then writes a few random texts: a grammar that no text can satisfy reaches a state
without a next token, and a grammar that is slow at every token would slow down every stream. A check runs the
client's patterns on the answer, which can take for ever.
"""

import json
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from jsonschema.exceptions import best_match
from jsonschema.validators import Draft202012Validator, extend, validator_for
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from referencing import Registry

from api.engine.thinking import Marker, Thinks, json_rules

CPU_S = 5
MEMORY_BYTES = 2**29
TEXTS = 4
TOKENS = 48  # of each text at most
VALIDATION_S = 0.03  # CPU time; vLLM validates schemas on the service's event loop, for each request
COMPILING_S = 0.25  # CPU time with the validation; the engine compiles for each request, on a thread
STEP_S = 0.005  # mean CPU time of a step; the engine makes one step for each token
MAX_REASON_CHARS = 300


def main() -> None:
    os.nice(10)
    for line in sys.stdin:
        print(_answered(json.loads(line)), flush=True)


def _answered(request: dict[str, Any]) -> str:
    schema = request["schema"]
    if "answer" in request:
        return _in_a_fork(partial(_check, request["answer"], schema), "the answer could not be checked")
    tokenizer = _tokenizer(request["directory"], request["vocab_size"])
    closing = Marker(**request["closing"]) if request.get("closing") else None
    trial = partial(_trial, tokenizer, schema, request.get("rules") or "", closing)
    return _in_a_fork(trial, "it takes too much time or memory")


def _in_a_fork(work: Callable[[], str], ended: str) -> str:
    """Return what `work` returns, or `ended` if it has not come to its end."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _limit()
            os.write(writer, " ".join(work().split())[:MAX_REASON_CHARS].encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader, "rb") as answer:
        reason = answer.read()
    _, status = os.waitpid(child, 0)
    return reason.decode(errors="replace") if status == 0 else ended


@lru_cache(maxsize=1)
def _tokenizer(directory: str, vocab_size: int) -> Any:
    return LLTokenizer(Path(directory, "tokenizer.json").read_text(), n_vocab=vocab_size)


def _limit() -> None:
    pages = int(open("/proc/self/statm").read().split()[0])
    memory = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _trial(tokenizer: Any, schema: str, rules: str, closing: Marker | None) -> str:
    begun = time.thread_time()
    grammar, before = _grammar(tokenizer, schema, rules, closing)
    refusal = str(LLMatcher.validate_grammar(grammar))
    if refusal:  # in rules the library tells where in the grammar, and shows it
        return refusal.partition("\n")[0].rpartition("JSON schema: ")[2] if closing or rules else refusal
    if time.thread_time() - begun > VALIDATION_S:
        return "it takes too much time"
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))
    if time.thread_time() - begun > COMPILING_S:
        return "it takes too much time"
    choose = random.Random(0)
    begun, steps = time.thread_time(), 0
    for _ in range(TEXTS):
        matcher.reset()
        matcher.consume_tokens(before)
        written = _write(matcher, tokenizer, choose)
        if matcher.is_error():
            return "no text can satisfy it" if written <= 1 else matcher.get_error()
        steps += written
    if (time.thread_time() - begun) / steps > STEP_S:
        return "it takes too much time a token"
    return ""


def _grammar(tokenizer: Any, schema: str, rules: str, closing: Marker | None) -> tuple[str, list[int]]:
    """Return the grammar as the engine has it, and the tokens after which the answer begins."""
    if closing is None:
        if rules:
            return LLMatcher.grammar_from_lark(f"start: answer\n{rules}"), []
        return LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_flexible": False}), []
    answer = rules or json_rules(schema)
    grammar = LLMatcher.grammar_from_lark(Thinks(closing, closing, inside=True).grammar(answer))
    return grammar, tokenizer.tokenize_str(closing.text) if closing.id is None else [closing.id]


def _write(matcher: Any, tokenizer: Any, choose: random.Random) -> int:
    """Write a random text, perhaps without an end; return its number of steps."""
    for step in range(1, TOKENS + 1):
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        possible = np.flatnonzero(bits)
        if matcher.is_error() or matcher.is_stopped() or not len(possible):
            return step
        token = int(choose.choice(possible))
        if token == tokenizer.eos_token:
            return step
        matcher.consume_token(token)
    return TOKENS


def _check(answer: str, schema: str) -> str:
    """Return how an answer disobeys a schema. No reference is fetched from anywhere."""
    try:
        value = json.loads(answer)
    except ValueError:
        return "the answer is not valid JSON"
    read = json.loads(schema)
    draft = validator_for(read, Draft202012Validator)
    newest = {**Draft202012Validator.VALIDATORS, **draft.VALIDATORS, **_OLDER}  # clients mix drafts
    error = best_match(extend(draft, newest)(read, registry=Registry()).iter_errors(value))
    return "" if error is None else f"{error.message} (at {error.json_path[:100]})"


def _or_null(name: str) -> Callable[..., Iterator[Any]]:
    """Return the check of a keyword that OpenAPI's `nullable` lets null pass."""

    def check(validator: Any, wanted: Any, value: Any, schema: dict[str, Any]) -> Iterator[Any]:
        if not (value is None and schema.get("nullable") is True):
            yield from Draft202012Validator.VALIDATORS[name](validator, wanted, value, schema)

    return check


def _exclusive(name: str, bound: str) -> Callable[..., Iterator[Any]]:
    """Return the check of an exclusive bound; in draft 4 and OpenAPI 3.0 it is a boolean beside the bound."""

    def check(validator: Any, limit: Any, value: Any, schema: dict[str, Any]) -> Iterator[Any]:
        if limit is True:
            limit = schema.get(bound)
        if limit is not None and not isinstance(limit, bool):
            yield from Draft202012Validator.VALIDATORS[name](validator, limit, value, schema)

    return check


_OLDER = {
    "type": _or_null("type"),
    "enum": _or_null("enum"),
    "exclusiveMinimum": _exclusive("exclusiveMinimum", "minimum"),
    "exclusiveMaximum": _exclusive("exclusiveMaximum", "maximum"),
}


if __name__ == "__main__":
    main()

"""`python -m api.engine.grammar_worker`: try JSON schemas, one request a line.

In: lines of {"directory": of the tokenizer, "vocab_size": N, "schema": JSON text}. Out: a line for each,
empty if the engine may have the schema, otherwise the reason for the refusal.

Every trial is a fork with its own limits; the kernel ends it when it exceeds them. A schema of 50 bytes can
take the library minutes (nested repetitions in a pattern). A trial compiles the schema with vLLM's library,
then writes a few random texts: a grammar that no text can satisfy reaches a state without a next token, and
a grammar that is slow at every token would slow down every stream.
"""

import json
import os
import random
import re
import resource
import sys
import time
from functools import lru_cache
from typing import Any

import numpy as np
import xgrammar

CPU_S = 5
MEMORY_BYTES = 2**29
TEXTS = 4
TOKENS = 48  # of each text at most
CONVERSION_S = 0.03  # CPU time; vLLM converts schemas on the service's event loop
STEP_S = 0.005  # mean CPU time of a step; the engine makes one step for each token
_WHERE = re.compile(r"^\[[\d:]+\] \S+ ")  # time and source file in front of the library's messages


def main() -> None:
    os.nice(10)
    for line in sys.stdin:
        print(_in_a_fork(json.loads(line)), flush=True)


def _in_a_fork(request: dict[str, Any]) -> str:
    compiler = _compiler(request["directory"], request["vocab_size"])
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _limit()
            os.write(writer, _trial(compiler, request["schema"]).encode()[:1024])
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader, "rb") as answer:
        refusal = answer.read()
    _, status = os.waitpid(child, 0)
    return refusal.decode(errors="replace") if status == 0 else "it takes too much time or memory"


@lru_cache(maxsize=1)
def _compiler(directory: str, vocab_size: int) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocab_size)
    return xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)


def _limit() -> None:
    pages = int(open("/proc/self/statm").read().split()[0])
    memory = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _trial(compiler: Any, schema: str) -> str:
    begun = time.thread_time()
    try:
        xgrammar.Grammar.from_json_schema(schema)
        if time.thread_time() - begun > CONVERSION_S:
            return "it takes too much time"
        compiled = compiler.compile_json_schema(schema, any_whitespace=False)
    except MemoryError:
        raise
    except Exception as error:
        return " ".join(_WHERE.sub("", str(error)).split()) or "it cannot be compiled"
    choose = random.Random(0)
    begun, steps = time.thread_time(), 0
    for _ in range(TEXTS):
        written = _write(compiled, choose)
        if written is None:
            return "no text can satisfy it"
        steps += written
    if (time.thread_time() - begun) / steps > STEP_S:
        return "it takes too much time a token"
    return ""


def _write(compiled: Any, choose: random.Random) -> int | None:
    """Write a random text, perhaps without an end; return its number of steps, or None if it got stuck."""
    matcher = xgrammar.GrammarMatcher(compiled)
    bitmask = xgrammar.allocate_token_bitmask(1, compiled.tokenizer_info.vocab_size)
    for step in range(1, TOKENS + 1):
        matcher.fill_next_token_bitmask(bitmask)
        bits = np.unpackbits(bitmask.numpy().view(np.uint8), bitorder="little")
        possible = np.flatnonzero(bits[: compiled.tokenizer_info.vocab_size])
        if not len(possible):
            return None
        matcher.accept_token(int(choose.choice(possible)))
        if matcher.is_terminated():
            return step
    return TOKENS


if __name__ == "__main__":
    main()

"""A process that tries grammars out: `python -m api.engine.grammar_worker`, one request a line.

In: {"directory": of the tokenizer, "vocab_size": N, "schema": JSON text} a line. Out: a line each, empty if
the engine may have the schema, or why not. Every trial is a fork with limits of its own, ended by the kernel
when it exceeds them: a schema of 50 bytes can take the library minutes (nested repetitions in a pattern).
A trial compiles as vLLM does, with the same library, then writes a few texts at random: a grammar that no
text can satisfy has no next token somewhere, and one that is slow to step would slow every stream down.
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
CONVERSION_S = 0.03  # CPU time; the service does this part itself, on its event loop
STEP_S = 0.005  # CPU time for the mean step; the engine makes one a token
_WHERE = re.compile(r"^\[[\d:]+\] \S+ ")  # of the library's source, in front of its messages


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
        told = answer.read()
    _, status = os.waitpid(child, 0)
    return told.decode(errors="replace") if status == 0 else "it takes too much time or memory"


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
    """Writes a text at random, which may stay without an end. How many steps it took; None: it is stuck."""
    matcher = xgrammar.GrammarMatcher(compiled)
    words = xgrammar.allocate_token_bitmask(1, compiled.tokenizer_info.vocab_size)
    for step in range(1, TOKENS + 1):
        matcher.fill_next_token_bitmask(words)
        bits = np.unpackbits(words.numpy().view(np.uint8), bitorder="little")
        possible = np.flatnonzero(bits[: compiled.tokenizer_info.vocab_size])
        if not len(possible):
            return None
        matcher.accept_token(int(choose.choice(possible)))
        if matcher.is_terminated():
            return step
    return TOKENS


if __name__ == "__main__":
    main()

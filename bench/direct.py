"""Run the engine without an HTTP front end for bench/serving.py: AsyncLLM in this process, prompts as tokens.

This is the ceiling for any front end: the service's own engine arguments (API_* variables), no HTTP, no
template, no JSON. The program prints READY once it has generated a token. Then it reads loads
(bench/client.py) from stdin, one a line, and answers each with a line of figures.
"""

import asyncio
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.client import Answer, Load, summary  # noqa: E402 - run as a program, only its folder is on the path


async def main() -> None:
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    from api.engine.artifact import read_artifact
    from api.engine.engine import Engine
    from api.engine.messages import Message
    from api.engine.prompt import Prompt
    from api.settings import read_settings

    settings = read_settings()
    artifact = read_artifact(settings.artifacts_dir)
    [arguments] = Engine(settings, artifact).arguments()
    vars(arguments).update(json.loads(sys.argv[1]))
    llm = AsyncLLM.from_engine_args(arguments, usage_context=UsageContext.OPENAI_API_SERVER)
    prompt = Prompt.load(artifact.directory)
    gc.collect()
    gc.freeze()  # as in the service

    def tokens_of(load: Load) -> list[tuple[list[int], int]]:
        chats = [load.chat(number) for number in range(load.requests)]
        return [(prompt.encode([Message("user", text)]), count) for text, count in chats]

    await measure(llm, tokens_of(Load(requests=1, tokens=1)), 1)
    print("READY", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        load = Load(**json.loads(line))
        print(json.dumps(await measure(llm, tokens_of(load), load.streams)), flush=True)
    llm.shutdown()


async def measure(llm: Any, prompts: list[tuple[list[int], int]], streams: int) -> dict[str, Any]:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    waiting = iter(enumerate(prompts))
    answers: list[Answer] = []
    started = time.monotonic_ns()

    async def stream() -> None:
        for number, (ids, tokens) in waiting:
            params = SamplingParams(temperature=0, max_tokens=tokens, output_kind=RequestOutputKind.DELTA)
            answer = Answer(time.perf_counter(), prompt_tokens=len(ids))
            async for output in llm.generate({"prompt_token_ids": ids}, params, f"{started}-{number}"):
                answer.last = time.perf_counter()
                answer.first = answer.first or answer.last
                answer.tokens += len(output.outputs[0].token_ids)
            answer.ended = time.perf_counter()
            answers.append(answer)

    cpu_s, begun = time.process_time(), time.perf_counter()
    await asyncio.gather(*(stream() for _ in range(streams)))
    wall_s, cpu_s = time.perf_counter() - begun, time.process_time() - cpu_s
    return {**summary(answers, wall_s), "front_cores": round(cpu_s / wall_s, 3), "client_cores": 0.0}


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())

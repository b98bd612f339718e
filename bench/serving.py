"""How fast an OpenAI-style API streams: `--streams` chats at once until `--requests` are answered.

Prompts are random words, no two alike, so that no cache helps. Prints one JSON object: output tokens a
second, and percentiles of the time to the first token and between tokens. The key is OPENAI_API_KEY.
`docker compose run --rm bench` runs it beside the API.
"""

import argparse
import asyncio
import json
import random
import time

from openai import AsyncOpenAI

WORDS = "river clock garden letter bridge candle market winter engine mirror pocket ladder".split()


async def main(options: argparse.Namespace) -> None:
    client = AsyncOpenAI(base_url=f"{options.url}/v1", max_retries=0, timeout=600)
    model = (await client.models.list()).data[0].id
    turns = asyncio.Semaphore(options.streams)
    first_s: list[float] = []
    between_s: list[float] = []

    async def chat(number: int) -> int:
        prompt = " ".join(random.Random(number).choices(WORDS, k=options.words))
        async with turns:
            begun = last = time.monotonic()
            stream = await client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": f"{number} {prompt}"}],
                max_tokens=options.tokens,
                stream=True,
                stream_options={"include_usage": True},
            )
            tokens = 0
            async for chunk in stream:
                now = time.monotonic()
                if chunk.choices and chunk.choices[0].delta.content:
                    (between_s if last > begun else first_s).append(now - last)
                    last = now
                if chunk.usage:
                    tokens = chunk.usage.completion_tokens
            return tokens

    begun = time.monotonic()
    tokens = sum(await asyncio.gather(*(chat(number) for number in range(options.requests))))
    took_s = time.monotonic() - begun
    told = {
        "model": model,
        **{name: getattr(options, name) for name in ("requests", "streams", "words", "tokens")},
        "output_tokens_per_second": round(tokens / took_s, 1),
        "first_token_s": percentiles(first_s),
        "between_tokens_s": percentiles(between_s),
    }
    print(json.dumps(told, indent=2))


def percentiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values) or [0.0]
    return {f"p{p}": round(ordered[min(len(ordered) * p // 100, len(ordered) - 1)], 4) for p in (50, 90, 99)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--words", type=int, default=200, help="of a prompt")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer, at most")
    asyncio.run(main(parser.parse_args()))

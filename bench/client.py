"""Measure how fast an OpenAI-style API streams: `--streams` chats at once until `--requests` are answered.

    python bench/client.py --url http://127.0.0.1:8000 --streams 32

Prompts are random words and all different, so that no cache helps; a word is a token in the usual
vocabularies. The program prints one JSON object. The first token is the first event with text. A stream's
time per token is the time from there to its last event with text, divided by its tokens minus one; the API
counts the tokens. The key is OPENAI_API_KEY. It is one process and uses the standard library only. It
searches bytes and does not parse them, so that it is not the limit; `client_cores` is the CPU time that it
took. `docker compose run --rm bench` runs it next to the API.
"""

import argparse
import asyncio
import json
import os
import random
import re
import ssl
import time
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

WORDS = "river clock garden letter bridge candle market winter engine mirror pocket ladder".split()
LENGTHS = ("fixed", "sharegpt")
_TEXT = re.compile(rb'"(?:content|text)": ?"[^"]')
_USAGE = re.compile(rb'"(prompt|completion)_tokens": ?(\d+)')
_TAIL = 4096  # bytes kept of an answer's end, enough for its last events


@dataclass(frozen=True)
class Load:
    """Describe a load. words, tokens: of a prompt and of its answer, at most; their means for sharegpt."""

    requests: int = 64
    streams: int = 8
    words: int = 200
    tokens: int = 64
    lengths: str = "fixed"
    seed: int = 0

    def chat(self, number: int) -> tuple[str, int]:
        """Return a prompt and the most tokens that its answer may have."""
        rng = random.Random(f"{self.seed} {number}")
        words, tokens = self.words, self.tokens
        if self.lengths == "sharegpt":  # log-normal: many short requests and a few long ones
            words, tokens = (round(log_normal(rng, mean)) for mean in (words, tokens))
        return f"{number} " + " ".join(rng.choices(WORDS, k=words)), tokens


def log_normal(rng: random.Random, mean: float, sigma: float = 1.0) -> float:
    """Clip to between 4 and four times the mean, which changes the mean by less than a tenth."""
    return min(4 * mean, max(4.0, mean * rng.lognormvariate(-(sigma**2) / 2, sigma)))


@dataclass
class Answer:
    """Times of one stream, in seconds of `time.perf_counter`."""

    begun: float
    first: float = 0.0
    last: float = 0.0
    ended: float = 0.0
    prompt_tokens: int = 0
    tokens: int = 0


class Connection(asyncio.Protocol):
    """Send one chat after another on one connection."""

    def __init__(self) -> None:
        self._answer = Answer(0.0)
        self._tail = b""
        self._done: asyncio.Future[None] | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    async def chat(self, request: bytes) -> Answer:
        """Time one answer. Raises: ConnectionError if it is not a whole stream."""
        self._answer = answer = Answer(time.perf_counter())
        self._tail, self._done = b"", asyncio.get_running_loop().create_future()
        self._transport.write(request)
        await self._done
        if b"data: [DONE]" not in self._tail:
            raise ConnectionError(f"no whole stream: {self._tail[:500]!r}")
        for what, count in _USAGE.findall(self._tail):
            setattr(answer, "prompt_tokens" if what == b"prompt" else "tokens", int(count))
        return answer

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        answer = self._answer
        if _TEXT.search(data):
            answer.first = answer.first or now
            answer.last = now
        self._tail = (self._tail + data)[-_TAIL:]
        if self._done and not self._done.done() and _is_whole(self._tail):
            answer.ended = now
            self._done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if self._done and not self._done.done():
            self._done.set_exception(error or ConnectionError("the server hung up"))


def _is_whole(tail: bytes) -> bool:
    """Return whether the last chunk of a stream has come, or the whole of a refusal."""
    if tail.endswith(b"\r\n0\r\n\r\n"):
        return True
    head, found, body = tail.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return bool(found and length and len(body) >= int(length[1]))


async def measure(url: str, load: Load) -> dict[str, Any]:
    place = urlsplit(url)
    model = await asyncio.to_thread(_model, url)
    port = place.port or (443 if place.scheme == "https" else 80)
    tls = ssl.create_default_context() if place.scheme == "https" else None
    loop = asyncio.get_running_loop()
    connections = [
        (await loop.create_connection(Connection, place.hostname or "", port, ssl=tls))[1]
        for _ in range(min(load.streams, load.requests))
    ]
    requests = iter([request_of(place, model, *load.chat(number)) for number in range(load.requests)])
    answers: list[Answer] = []

    async def stream(connection: Connection) -> None:
        for request in requests:  # the next free stream takes it
            answers.append(await connection.chat(request))

    cpu_s, begun = time.process_time(), time.perf_counter()
    await asyncio.gather(*map(stream, connections))
    wall_s, cpu_s = time.perf_counter() - begun, time.process_time() - cpu_s
    return {
        "model": model,
        **vars(load),
        **summary(answers, wall_s),
        "client_cores": round(cpu_s / wall_s, 3),
    }


def summary(answers: list[Answer], wall_s: float) -> dict[str, float]:
    """Summarise the results. Rates are in tokens a second, times in milliseconds."""
    figures = {
        "wall_s": round(wall_s, 3),
        "prompt_tokens": sum(answer.prompt_tokens for answer in answers),
        "output_tokens": sum(answer.tokens for answer in answers),
        "output_tokens_per_s": round(sum(answer.tokens for answer in answers) / wall_s, 1),
    }
    spans = {
        "ttft": [answer.first - answer.begun for answer in answers if answer.first],
        "tpot": [(a.last - a.first) / (a.tokens - 1) for a in answers if a.tokens > 1],
        "e2e": [answer.ended - answer.begun for answer in answers],
    }
    for name, seconds in spans.items():
        figures |= {f"{name}_p{p}_ms": round(1000 * _quantile(seconds, p), 3) for p in (50, 95, 99)}
    return figures


def _quantile(values: list[float], percent: int) -> float:
    ordered = sorted(values) or [0.0]
    return ordered[min(len(ordered) * percent // 100, len(ordered) - 1)]


def _model(url: str) -> str:
    request = urllib.request.Request(f"{url}/v1/models", headers=_key())
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(json.load(answer)["data"][0]["id"])


def request_of(place: SplitResult, model: str, prompt: str, tokens: int) -> bytes:
    asked = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    body = json.dumps(asked).encode()
    headers = {
        "host": place.netloc,
        "content-type": "application/json",
        "content-length": len(body),
        **_key(),
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {place.path}/v1/chat/completions HTTP/1.1\r\n{lines}\r\n".encode() + body


def _key() -> dict[str, str]:
    key = os.environ.get("OPENAI_API_KEY")
    return {"authorization": f"Bearer {key}"} if key else {}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--requests", type=int, default=Load.requests)
    parser.add_argument("--streams", type=int, default=Load.streams)
    parser.add_argument("--words", type=int, default=Load.words, help="words of a prompt")
    parser.add_argument("--tokens", type=int, default=Load.tokens, help="tokens of an answer, at most")
    parser.add_argument(
        "--lengths", choices=LENGTHS, default=Load.lengths, help="sharegpt: words and tokens are means"
    )
    parser.add_argument("--seed", type=int, default=Load.seed, help="seed of the prompts")
    options = vars(parser.parse_args())
    url = options.pop("url").rstrip("/")
    print(json.dumps(asyncio.run(measure(url, Load(**options))), indent=2))


if __name__ == "__main__":
    main()

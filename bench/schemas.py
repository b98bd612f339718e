"""Ask a served model for answers in every schema of tests/api/client_schemas.jsonl, and check each one.

    python bench/schemas.py --artifacts artifacts --output bench/results/schemas-CARD.json

The service runs with API_PRESET=auto and nothing else is doubled: the grammar compiles in vLLM and masks the
tokens of the real model. Two questions are answered:
- does every finished answer obey its schema? `jsonschema` reads it, which knows nothing of the grammar. An
  answer that was cut at `max_tokens` is counted and not checked;
- what does a schema cost? `--streams` clients ask for answers in one schema, and without one, in turn. A
  ratio of tokens a second of 1.0 means that the schema costs nothing. vLLM's own server does the same with
  the other library, xgrammar.

Run it in the API's environment.
"""

import argparse
import asyncio
import contextlib
import json
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from api.engine.grammar_worker import _check  # noqa: E402 - as above
from bench.front import (  # noqa: E402 - run as a program, only its folder is on the path
    free_port,
    hardware,
    versions,
)
from bench.servers import Server  # noqa: E402

SCHEMAS = ROOT / "tests" / "api" / "client_schemas.jsonl"
ANSWERS, MAX_TOKENS = 8, 400
PRICED = {
    "plain": {
        "type": "object",
        "properties": {"title": {"type": "string"}, "words": {"type": "array", "items": {"type": "string"}}},
        "required": ["title", "words"],
        "additionalProperties": False,
    },
    "bounded": {  # counting up to a bound is the hardest work of both libraries
        "type": "object",
        "properties": {
            "words": {"type": "array", "items": {"type": "string", "maxLength": 12}, "minItems": 200}
        },
        "required": ["words"],
        "additionalProperties": False,
    },
}
PRICED_TOKENS, TURN_S = 128, 4.0
TURNS = 5


def main(options: argparse.Namespace) -> dict[str, Any]:
    cases = [json.loads(line) for line in SCHEMAS.read_text().splitlines()][: options.schemas]
    with _served("ours", options.artifacts, {}) as ours:
        rows, price = asyncio.run(_measure(ours, cases, options))
    xgrammar = {"structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True}}
    with _served("stock", options.artifacts, xgrammar) as stock:
        _, other = asyncio.run(_measure(stock, [], options))
    return {
        "hardware": {**hardware(), "device": _device()},
        "versions": versions(),
        "price": {"ours, llguidance": price, "vLLM's server, xgrammar": other},
        "sum": _sum(rows),
        "schemas": rows,
    }


@contextlib.contextmanager
def _served(name: str, artifacts: Path, extra: dict[str, Any]) -> Iterator[str]:
    """Yield the address of a server that is ready."""
    port = free_port()
    log = Path(tempfile.gettempdir()) / f"finechat-schemas-{name}.log"
    server = Server(name, artifacts, "auto", extra, port, log)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop()


def _device() -> str:
    from vllm.platforms import current_platform  # asks the driver; torch would use memory of the GPU

    return "cpu" if current_platform.is_cpu() else current_platform.get_device_name()


async def _measure(
    url: str, cases: list[dict[str, Any]], options: argparse.Namespace
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        name = (await client.get("/v1/models")).json()["data"][0]["id"]
        rows = [await _obeys(client, name, case, options.answers) for case in cases]
        return rows, await _price(client, name, options.streams)


async def _obeys(client: httpx.AsyncClient, model: str, case: dict[str, Any], answers: int) -> dict[str, Any]:
    """Return how many answers ended and obeyed. A schema that no grammar can enforce is asked for with
    `strict: false`.
    """
    form = {"name": "answer", "schema": case["schema"], "strict": "cannot" not in case}
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Answer with made-up values, and be brief."}],
        "response_format": {"type": "json_schema", "json_schema": form},
        "max_tokens": MAX_TOKENS,
        "temperature": 0.7,
    }
    begun = time.monotonic()
    replies = await asyncio.gather(
        *(client.post("/v1/chat/completions", json={**body, "seed": seed}) for seed in range(answers))
    )
    took = time.monotonic() - begun
    found = Counter(_verdict(reply, case["schema"]) for reply in replies)
    what = {"who": case["who"], "what": case["what"], "strict": form["strict"]}
    return {**what, "seconds": round(took, 2), **dict(sorted(found.items()))}


def _verdict(reply: httpx.Response, schema: dict[str, Any]) -> str:
    if reply.status_code != 200:
        return f"status {reply.status_code}: {reply.json()['error']['message'][:200]}"
    choice = reply.json()["choices"][0]
    if choice["finish_reason"] != "stop":
        return "cut"
    return "disobeyed" if _check(choice["message"]["content"], json.dumps(schema)) else "obeyed"


async def _price(client: httpx.AsyncClient, model: str, streams: int) -> dict[str, Any]:
    """Return tokens a second with each schema and without one, in turn, and the median ratios."""
    plain: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": "Write many short words."}],
        "max_tokens": PRICED_TOKENS,
        "temperature": 0.7,
    }
    bodies = {"without": {**plain, "ignore_eos": True}}
    for name, schema in PRICED.items():
        form = {"name": name, "schema": schema, "strict": True}
        bodies[name] = {**plain, "response_format": {"type": "json_schema", "json_schema": form}}
    speeds: dict[str, list[float]] = {name: [] for name in bodies}
    for turn in range(TURNS + 1):
        for name, body in bodies.items():
            speed = await _speed(client, body, streams)
            if turn:  # the first one compiles
                speeds[name].append(speed)
    found: dict[str, Any] = {"streams": streams, "max_tokens": PRICED_TOKENS}
    for name in bodies:
        found[f"{name}_tokens_per_s"] = [round(speed) for speed in speeds[name]]
    for name in PRICED:
        ratios = [a / b for a, b in zip(speeds[name], speeds["without"], strict=True)]
        found[f"{name}_ratio"] = round(statistics.median(ratios), 3)
    return found


async def _speed(client: httpx.AsyncClient, body: dict[str, Any], streams: int) -> float:
    """Return the tokens a second of `streams` clients that ask again for TURN_S seconds."""
    begun = time.monotonic()

    async def ask(stream: int) -> int:
        tokens, number = 0, stream
        while time.monotonic() - begun < TURN_S:
            reply = await client.post("/v1/chat/completions", json={**body, "seed": number})
            tokens += reply.raise_for_status().json()["usage"]["completion_tokens"]
            number += streams
        return tokens

    return sum(await asyncio.gather(*map(ask, range(streams)))) / (time.monotonic() - begun)


def _sum(rows: list[dict[str, Any]]) -> dict[str, int]:
    """Add up the verdicts, apart for strict schemas and others."""
    found: Counter[str] = Counter()
    for row in rows:
        side = "strict" if row["strict"] else "not strict"
        for verdict, count in row.items():
            if isinstance(count, int) and not isinstance(count, bool):
                found[f"{side}: {verdict[:10]}"] += count
        found[f"{side}: schemas"] += 1
    return dict(sorted(found.items()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--artifacts", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--answers", type=int, default=ANSWERS, help="answers to each schema")
    parser.add_argument("--schemas", type=int, help="only the first of them")
    parser.add_argument("--streams", type=int, default=64, help="answers at once when the price is measured")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers end, too
    found = main(options)
    text = json.dumps(found, indent=1) + "\n"
    if options.output:
        options.output.write_text(text)
    print(json.dumps({key: found[key] for key in ("price", "sum")}, indent=1))

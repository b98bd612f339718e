"""Compare many simultaneous streams with the same answers in one piece: no token is lost or duplicated."""

import time
from pathlib import Path
from typing import Any

from bench.load import Headers, Service, at_once, body, events, good

# A greedy choice between two tokens that differ by less can change with the batch: in float32, and in
# bfloat16, where logits between 16 and 32 have steps of 0.125 and layers before them round, too.
TIE_NATS, ROUNDED_TIE_NATS = 1e-3, 0.75


async def compare_streams(
    service: Service, headers: Headers, prompts: int, streams: int, tokens: int
) -> dict[str, Any]:
    """Send every prompt once as a stream, `streams` of them open at once, and once in one piece."""

    async def whole(number: int) -> Any:
        asked = body(service, number, max_tokens=tokens, logprobs=True, top_logprobs=5)
        return (await good(service, asked, headers)).json

    async def stream(number: int) -> list[Any]:
        options = {"stream": True, "stream_options": {"include_usage": True}}
        asked = body(service, number, max_tokens=tokens, **options)
        return events((await good(service, asked, headers)).body)

    begun = time.monotonic()
    streamed = await at_once(streams, prompts, stream)
    seconds = time.monotonic() - begun
    entire = await at_once(8, prompts, whole)
    counts = {"equal": 0, "ties": 0, "lost_or_duplicated": 0}
    gaps = []
    for received, answer in zip(streamed, entire, strict=True):
        outcome, gap = _compare(received, answer)
        counts[outcome] += 1
        gaps += [gap] if outcome != "equal" else []
    generated = sum(received[-1]["usage"]["completion_tokens"] for received in streamed)
    return {
        **counts,
        "gaps_nats": gaps,
        "prompts": prompts,
        "open_streams": streams,
        "tokens_per_s": round(generated / seconds, 1),
    }


def _compare(stream: list[Any], answer: Any) -> tuple[str, float]:
    """Return whether the texts are equal or a tie explains the difference, and the tie in nats.

    The stream says no tokens, so a tie is looked for at every token up to which the texts agree: another
    candidate that is nearly as likely and that the stream continues with.
    """
    text = "".join(choice["delta"].get("content") or "" for event in stream for choice in event["choices"])
    if text == answer["choices"][0]["message"]["content"] and stream[-1]["usage"] == answer["usage"]:
        return "equal", 0.0
    said, gaps = "", []
    for entry in answer["choices"][0]["logprobs"]["content"]:
        gaps += [
            abs(entry["logprob"] - other["logprob"])
            for other in entry["top_logprobs"]
            if other["token"] != entry["token"] and (text == said or text.startswith(said + other["token"]))
        ]
        said += entry["token"]
        if not text.startswith(said):
            break
    gap = min(gaps, default=float("inf"))
    return ("ties" if gap < _tie_nats() else "lost_or_duplicated"), gap


def _tie_nats() -> float:
    """Return the tolerance on this CPU: the service computes in bfloat16 where AVX-512 makes that fast."""
    return ROUNDED_TIE_NATS if "avx512bw" in Path("/proc/cpuinfo").read_text() else TIE_NATS

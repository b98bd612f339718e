"""Compute how many replicas and GPUs a load needs, and what they cost, from one replica's measured curve.

    python bench/capacity.py --curve bench/results/serving-h100.json --rate 40 --ttft-ms 500 --tpot-ms 50
    python bench/capacity.py --curve ... --trace arrivals.csv --percentile 99 --gpu-hour 2.50

The curve consists of rows of bench/serving.py: numbers of streams and one replica's figures for them. `fit`
derives the time of an engine's step from it: a part for the sequences in the step, and a part for each
prompt token in it. The trace is a CSV file with the header `arrival_s,prompt_tokens,output_tokens`. Without
a trace, --rate requests a second arrive, Poisson or burstier, with ShareGPT's lengths. bench/fleet.py plays
the trace on simulated replicas.

The program prints JSON with the smallest number of replicas that meets TTFT and TPOT at that percentile.
`in_progress` is a replica's mean number of requests then, which is the autoscaler's target.
`predicted_over_measured` shows how well the simulation reproduces all rows of the server, including those
of other lengths than the curve's. Not modelled: the key-value cache (if it holds fewer tokens than --slots
answers need, set --slots lower), hits in it, and replicas that start or fail. bench/capacity_check.py
compares the prediction with two real replicas. Standard library only.
"""

import argparse
import csv
import json
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.client import Load, log_normal
from bench.fleet import DISPATCHES, Arrival, Speed, benchmark, simulate

CHECKED = ("output_tokens_per_s", "ttft_p50_ms", "ttft_p95_ms", "tpot_p50_ms", "tpot_p95_ms")
MEAN_PROMPT, MEAN_OUTPUT = 220, 200  # means of ShareGPT in vLLM's benchmarks
Row = dict[str, Any]


def fit(rows: Sequence[Row], slots: int, step_tokens: int) -> Speed:
    """Return the parameters with which a simulated replica has the figures of the measured one.

    rows: one server's rows of fixed lengths, P tokens in and T out, for one stream and for more. Let n be the
    smallest number of streams above one. Their prompts are read in one step, so they wait (n - 1) P c
    longer for the first token than one stream alone, where c is the time of a prompt token. The rest of one
    stream's wait, minus a step, passes outside the engine: d. At X tokens a second, one of n streams has
    its T tokens after n T / X: d, plus n P c for all prompts, plus T steps.
    Raises: ValueError unless there are rows with one stream and with more.
    """
    curve = _medians(rows)
    if 1 not in curve or len(curve) < 2:
        raise ValueError(f"the curve has rows for streams {[*curve]}, and 1 and more are needed")
    alone = curve.pop(1)
    few = min(curve)
    step_s = (alone.output / alone.rate - alone.first_s) / (alone.output - 1)
    token_s = (curve[few].first_s - alone.first_s) / ((few - 1) * alone.prompt)
    token_s = min(max(0.0, token_s), (alone.first_s - step_s) / alone.prompt)
    request_s = alone.first_s - step_s - token_s * alone.prompt
    points = [(1, step_s)]
    for streams, point in curve.items():
        taken = request_s + streams * point.prompt * token_s
        points.append((streams, max(points[-1][1], streams / point.rate - taken / point.output)))
    return Speed(tuple(points), token_s, request_s, slots, step_tokens)


def check(speed: Speed, rows: Sequence[Row]) -> Row:
    """Return the ratio of the simulated to the measured figures, by lengths and streams.

    A ratio is far from 1 where the engine was not the limit, such as the service in front of it.
    """
    found: dict[str, list[Row]] = {}
    for row in rows:
        streams, requests = row["streams"], row["requests"]
        load = Load(requests, streams, row["words"], row["tokens"], row["lengths"], row["seed"])
        chats = [load.chat(number) for number in range(requests)]
        words = [len(text.split()) for text, _ in chats]
        around = round((row["prompt_tokens"] - sum(words)) / requests)  # tokens that the chat template adds
        sizes = [(around + count, tokens) for count, (_, tokens) in zip(words, chats, strict=True)]
        figures = benchmark(replace(speed, slots=max(speed.slots, streams)), sizes, streams)
        ratios = {name: figures[name] / row[name] for name in CHECKED}
        found.setdefault(f"{row['lengths']} {streams}", []).append(ratios)
    return {
        point: {name: round(statistics.median(turn[name] for turn in turns), 2) for name in CHECKED}
        for point, turns in found.items()
    }


def read_curve(file: Path, server: str) -> list[Row]:
    """Return the server's rows with its own settings. Raises: ValueError if none has fixed lengths."""
    rows = json.loads(file.read_text())["rows"]
    found = [row for row in rows if row["server"] == server and not row["with"]]
    if not _fixed(found):
        raise ValueError(f"{file} has rows of {sorted({row['server'] for row in rows})}, not of {server}")
    return found


def _fixed(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["lengths"] == "fixed"]


class Point(NamedTuple):
    """prompt, output: tokens of a request. rate: tokens/s. first_s: seconds to the first token."""

    prompt: float
    output: float
    rate: float
    first_s: float


def _medians(rows: Sequence[Row]) -> dict[int, Point]:
    """Return the points by ascending streams, as medians over repeats."""
    found = {}
    for streams in sorted({row["streams"] for row in rows}):
        own = [
            Point(
                row["prompt_tokens"] / row["requests"],
                row["output_tokens"] / row["requests"],
                row["output_tokens_per_s"],
                row["ttft_p50_ms"] / 1000,
            )
            for row in rows
            if row["streams"] == streams
        ]
        found[streams] = Point(*map(statistics.median, zip(*own, strict=True)))
    return found


def generate(
    rate: float,
    seconds: float,
    burst: float = 1.0,
    seed: int = 0,
    prompt: int = MEAN_PROMPT,
    output: int = MEAN_OUTPUT,
) -> list[Arrival]:
    """Draw arrivals. burst: squared coefficient of variation of the gaps; 1 is Poisson's."""
    rng = random.Random(seed)
    trace, now = [], 0.0
    while (now := now + rng.gammavariate(1 / burst, burst / rate)) < seconds:
        trace.append(Arrival(now, round(log_normal(rng, prompt)), round(log_normal(rng, output))))
    return trace


def read_trace(file: Path) -> list[Arrival]:
    """Read a trace, in order of arrival. Raises: ValueError naming the line."""
    trace = []
    with file.open(newline="") as lines:
        for number, line in enumerate(csv.DictReader(lines), 2):
            try:
                at, *tokens = float(line["arrival_s"]), int(line["prompt_tokens"]), int(line["output_tokens"])
                if min(tokens) < 1:
                    raise ValueError("has no tokens")
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{file}, line {number}: {error!r}; arrival_s,prompt_tokens,output_tokens"
                ) from None
            trace.append(Arrival(at, *tokens))
    if not trace:
        raise ValueError(f"{file}: holds no arrivals")
    return sorted(trace)


def fewest(
    trace: Sequence[Arrival], speed: Speed, target: Row, percentile: int, dispatch: str
) -> tuple[int, Row]:
    """Return the smallest number of replicas that meets `target` (ttft and tpot in ms), and their figures.

    Raises: ValueError if no number is enough.
    """
    seen: dict[int, Row] = {}

    def meets(replicas: int) -> bool:
        figures = seen[replicas] = simulate(trace, speed, replicas, dispatch)
        return all(figures[f"{name}_p{percentile}_ms"] <= most for name, most in target.items())

    few, enough = 0, 1
    while not meets(enough):
        if enough == len(trace):
            figures = {name: seen[enough][f"{name}_p{percentile}_ms"] for name in target}
            raise ValueError(f"a replica for each request gives {figures} ms, and {target} is wanted")
        few, enough = enough, min(2 * enough, len(trace))
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if meets(middle) else (middle, enough)
    return enough, seen[enough]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--curve", type=Path, required=True, help="results of bench/serving.py")
    parser.add_argument("--server", default="ours", help="the server whose rows are the curve")
    parser.add_argument("--trace", type=Path, help="CSV file of arrivals")
    parser.add_argument("--rate", type=float, default=10.0, help="requests a second, without a trace")
    parser.add_argument("--seconds", type=float, default=300.0, help="how long requests arrive")
    parser.add_argument("--burst", type=float, default=1.0, help="1: Poisson; 4: in bursts")
    parser.add_argument("--ttft-ms", type=float, required=True)
    parser.add_argument("--tpot-ms", type=float, required=True)
    parser.add_argument("--percentile", type=int, choices=(50, 95, 99), default=95)
    parser.add_argument("--dispatch", choices=DISPATCHES, default=DISPATCHES[0])
    parser.add_argument("--slots", type=int, default=64, help="API_MAX_NUM_SEQS")
    parser.add_argument("--step-tokens", type=int, default=8192, help="vLLM's max_num_batched_tokens")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs of a replica")
    parser.add_argument("--gpu-hour", type=float, help="price of a GPU for an hour")
    options = parser.parse_args()
    target = {"ttft": options.ttft_ms, "tpot": options.tpot_ms}
    try:
        rows = read_curve(options.curve, options.server)
        speed = fit(_fixed(rows), options.slots, options.step_tokens)
        if options.trace:
            trace = read_trace(options.trace)
        else:
            trace = generate(options.rate, options.seconds, options.burst)
        replicas, figures = fewest(trace, speed, target, options.percentile, options.dispatch)
    except (OSError, ValueError) as error:
        sys.exit(f"capacity: {error}")
    gpus = replicas * options.gpus
    figures = {"replicas": replicas, "gpus": gpus, **cost(figures, gpus, options.gpu_hour), **figures}
    figures["predicted_over_measured"] = check(speed, rows)
    print(json.dumps(figures, indent=1))


def cost(figures: Row, gpus: int, gpu_hour: float | None) -> Row:
    if gpu_hour is None:
        return {}
    tokens_an_hour = 3600 * figures["output_tokens_per_s"]
    return {"an_hour": gpus * gpu_hour, "a_million_tokens": round(1e6 * gpus * gpu_hour / tokens_an_hour, 3)}


if __name__ == "__main__":
    main()

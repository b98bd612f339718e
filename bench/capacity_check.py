"""Compare the predictions of bench/capacity.py with two real replicas on this machine.

    python bench/capacity_check.py --artifacts artifacts          # writes bench/results/capacity.json
    python bench/capacity_check.py --artifacts artifacts --add    # add one run to those kept

Two services run the artifact, each on half of the processor's cores. First the program measures the curve
of one replica on both at the same time, because they share memory and clock; the curve then contains the
cost of a neighbour, which two GPUs would not have. Then it plays traces of arrivals to both and sends each
request to the one that the dispatch chooses. The simulation gets the curve, the times of those arrivals and
the tokens that each request really had. The table has its figures next to the measured ones, with the
ratio.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.capacity import check, fit, generate  # noqa: E402 - run as a program, only its folder is on the path
from bench.client import Answer, Connection, Load, measure, request_of, summary  # noqa: E402
from bench.fleet import Arrival, choose, simulate  # noqa: E402
from bench.load import Service  # noqa: E402

RESULT = ROOT / "bench" / "results" / "capacity.json"
REPLICAS = 2
WORDS_A_PROMPT, TOKENS = 64, 32
POINTS = {1: 4, 4: 8, 16: 32, 64: 96}  # streams of the curve, and their requests
SLOTS, STEP_TOKENS = 64, 2048  # API_MAX_NUM_SEQS, and vLLM's tokens per step on a CPU
TRACES = ((0.6, "least-busy"), (0.6, "round-robin"), (1.2, "least-busy"))  # load as a share of capacity
SECONDS = 35.0
COMPARED = ("output_tokens_per_s", "ttft_p50_ms", "ttft_p95_ms", "tpot_p50_ms", "tpot_p95_ms", "e2e_p50_ms")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--artifacts", type=Path, default=ROOT / "artifacts")
    parser.add_argument("--add", action="store_true", help="add a run to those in the file")
    options = parser.parse_args()
    kept = json.loads(RESULT.read_text()) if options.add else {"rows": [], "runs": []}
    cores = sorted(os.sched_getaffinity(0))
    share = len(cores) // REPLICAS
    with tempfile.TemporaryDirectory() as folder:
        services = [
            Service(options.artifacts.absolute(), Path(folder) / f"{number}.log", {})
            for number in range(REPLICAS)
        ]
        try:
            for number, service in enumerate(services):
                os.sched_setaffinity(
                    0, cores[number * share : (number + 1) * share]
                )  # the processes inherit it
                service.start()
                os.sched_setaffinity(0, cores)
            rows, run = asyncio.run(_measure([service.url for service in services]))
        finally:
            for service in services:
                service.stop()
    hardware = {"machine": platform.machine(), "cores": len(cores), "cores_a_replica": share}
    results = {"hardware": hardware, "rows": kept["rows"] + rows, "runs": [*kept["runs"], run]}
    RESULT.write_text(json.dumps(results, indent=1) + "\n")
    print(table([trace for run in results["runs"] for trace in run["traces"]]))


async def _measure(urls: Sequence[str]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Measure the curve and the traces; return both, with the prediction for each trace."""
    rows = await _curve(urls)
    speed = fit(rows, SLOTS, STEP_TOKENS)
    results = {"speed": vars(speed), "predicted_over_measured": check(speed, rows)}
    print(results, flush=True)
    capacity = REPLICAS * statistics.median(
        row["output_tokens_per_s"] for row in rows if row["streams"] == 16
    )
    traces = []
    for seed, (load, dispatch) in enumerate(TRACES):
        planned = generate(load * capacity / TOKENS, SECONDS, seed=seed, prompt=WORDS_A_PROMPT, output=TOKENS)
        answers = await _replay(urls, rows[0]["model"], planned, dispatch, seed)
        begun = answers[0].begun
        trace = [Arrival(answer.begun - begun, answer.prompt_tokens, answer.tokens) for answer in answers]
        measured = summary(answers, max(answer.ended for answer in answers) - begun)
        predicted = simulate(trace, speed, REPLICAS, dispatch)
        traces.append({
            "load": load, "dispatch": dispatch, "requests": len(trace),
            "measured": {key: measured[key] for key in COMPARED},
            "predicted": {key: predicted[key] for key in COMPARED},
            "ratio": {key: round(predicted[key] / measured[key], 2) for key in COMPARED},
        })  # fmt: skip
        print(traces[-1], flush=True)
    return rows, {**results, "traces": traces}


async def _curve(urls: Sequence[str]) -> list[dict[str, Any]]:
    """Measure one replica's curve on all at once. The first answers only warm them up."""
    rows = []
    for streams, requests in {8: 8, **POINTS}.items():
        load = Load(requests, streams, WORDS_A_PROMPT, TOKENS, seed=streams)
        for row in await asyncio.gather(*(measure(url, load) for url in urls)):
            rows.append({"server": "ours", "with": {}, **row})
            print({key: rows[-1][key] for key in ("streams", *COMPARED)}, flush=True)
    return [row for row in rows if row["streams"] in POINTS]


async def _replay(
    urls: Sequence[str], model: str, trace: Sequence[Arrival], dispatch: str, seed: int
) -> list[Answer]:
    """Play the trace; return results in order of arrival."""
    in_progress = [0] * len(urls)
    begun = time.perf_counter()

    async def one(number: int, arrival: Arrival) -> Answer:
        load = Load(words=arrival.prompt_tokens, tokens=arrival.output_tokens, seed=1000 + seed)
        await asyncio.sleep(max(0.0, begun + arrival.arrival_s - time.perf_counter()))
        chosen = choose(in_progress, number, dispatch)
        in_progress[chosen] += 1
        place = urlsplit(urls[chosen])
        transport, connection = await asyncio.get_running_loop().create_connection(
            Connection, place.hostname or "", place.port or 80
        )
        try:
            return await connection.chat(request_of(place, model, *load.chat(number)))
        finally:
            transport.close()
            in_progress[chosen] -= 1

    answers = await asyncio.gather(*(one(number, arrival) for number, arrival in enumerate(trace)))
    return sorted(answers, key=lambda answer: answer.begun)


def table(traces: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table of predicted and measured figures with their ratio."""
    lines = [
        f"| load | dispatch | requests | {' | '.join(COMPARED)} |",
        "|---" * (3 + len(COMPARED)) + "|",
    ]
    for trace in traces:
        cells = [
            f"{trace['predicted'][key]:,.0f} / {trace['measured'][key]:,.0f} ({trace['ratio'][key]:.2f})"
            for key in COMPARED
        ]
        lines.append(
            f"| {trace['load']:.0%} | {trace['dispatch']} | {trace['requests']} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()

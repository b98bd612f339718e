"""Compare the engines' training speed with that of the peers installed here: tokens a second, memory, loss.

    python bench/training.py                          # every path that can run here; writes bench/results
    python bench/training.py --paths trl compiled-fp32 --repeats 5
    python bench/training.py --paths trl --repeats 1 --add       # keep the results of other paths
    python bench/training.py --shape qwen3-4b                    # another model; results in a file of its own

On a GPU it trains a model of random weights, by default of the Llama-3.2-3B shape, in bfloat16 with rank 32,
on rows of log-normal length (mean about 500 tokens, at most 2,048) packed to 16,384 a step. Without one it
trains the real 135M model in fp32 on the quickstart's rows, packed to 256 a step. Each path is a separate
process, the paths take turns, and only the rows' own tokens count, not padding. `trl` and `unsloth` are
SFTTrainer with packing, as their users call it; `unsloth-kept` has no gradient checkpointing. The others are
this project's engines.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.training_run import SHAPES, WORK, device_here  # noqa: E402

PATHS = {
    "cuda": ("trl", "unsloth", "unsloth-kept", "plain-bf16", "compiled-bf16", "compiled-fp8"),
    "cpu": ("trl", "plain-fp32", "compiled-fp32"),
}
PACKAGES = ("torch", "transformers", "trl", "peft", "unsloth", "bitsandbytes", "triton")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--paths", nargs="+")
    parser.add_argument("--shape", choices=SHAPES, default="", help="random weights of this shape")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--add", action="store_true", help="keep the rows of other paths in the file")
    options = parser.parse_args()
    device = device_here()
    paths = options.paths or [
        path for path in PATHS[device] if "unsloth" not in path or importlib.util.find_spec("unsloth")
    ]
    WORK.mkdir(parents=True, exist_ok=True)
    shape = options.shape
    rows = [row for row in _kept(device, shape) if row["path"] not in paths] if options.add else []
    for repeat in range(options.repeats):
        for path in paths:
            row = {"path": path, "repeat": repeat, **_run(path, shape)}
            rows.append(row)
            print(row, flush=True)
            _write(device, shape, rows)
    print(table(rows))


def _run(path: str, shape: str) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "bench" / "training_run.py"), path, shape]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, cwd=WORK, env=environment)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            result: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
            return result
    return {"failed": (done.stdout + done.stderr).strip()[-500:]}


def table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table of medians over repeats."""
    lines = [
        "| path | tokens/s | share of peak | memory, GiB | first step, s | loss |",
        "|---|---|---|---|---|---|",
    ]
    for path in dict.fromkeys(row["path"] for row in rows):
        own = [row for row in rows if row["path"] == path and "failed" not in row]
        if not own:
            lines.append(f"| {path} | failed | | | | |")
            continue
        middle = {
            key: statistics.median(row[key] for row in own) if own[0][key] is not None else None
            for key in ("tokens_per_s", "peak_share", "memory_gib", "first_step_s", "loss")
        }
        share = f"{middle['peak_share']:.1%}" if middle["peak_share"] else "–"
        lines.append(
            f"| {path} | {middle['tokens_per_s']:,.0f} | {share} | {middle['memory_gib']:.1f} | "
            f"{middle['first_step_s']:.0f} | {middle['loss']:.4f} |"
        )
    return "\n".join(lines)


def _result_file(device: str, shape: str) -> tuple[str, Path]:
    """Return the card's name and the file of its figures."""
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    card = name.removeprefix("NVIDIA ").split()[0].lower()
    of = f"{card}-{shape}" if shape else card
    return name, ROOT / "bench" / "results" / f"training-{of}.json"


def _kept(device: str, shape: str) -> list[dict[str, Any]]:
    _, path = _result_file(device, shape)
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.is_file() else []
    return rows


def _write(device: str, shape: str, rows: list[dict[str, Any]]) -> None:
    name, path = _result_file(device, shape)
    found = {}
    for package in PACKAGES:
        if importlib.util.find_spec(package):
            found[package] = importlib.metadata.version(package)
    hardware = {"name": name, "cpus": len(os.sched_getaffinity(0)), "machine": platform.machine()}
    results = {"hardware": hardware, "versions": found, "rows": rows}
    path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

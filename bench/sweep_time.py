"""Measure how long a sweep takes: 4 ranks, 500 steps of about 8 rows each, on a 3B model.

    python bench/sweep_time.py                       # the compiled engine in bf16, two arms at once
    python bench/sweep_time.py --quantization fp8 --parallel 3

Weights of the Llama-3.2-3B shape are random and rows are generated (both as in bench/engines.py), so the
speed is valid and the losses mean nothing. The time runs from the start of `python -m trainer sweep` to its
end: data, four processes with their start-up and compilation, training, validation and the page. Without a
GPU it runs a model of the 135M shape for 3 steps, to show that it works. The program writes
bench/results/sweep-<card>.json.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import engines

RANKS, STEPS, ROWS_A_STEP, TOKENS_A_STEP = (8, 16, 32, 64), 500, 8, 4400
ROWS = engines.WORK / "sweep-rows.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quantization", choices=("none", "fp8"), default="none")
    parser.add_argument("--parallel", type=int, default=2, help="arms at once")
    options = parser.parse_args()
    cuda = torch.cuda.is_available()
    shape, steps = (engines.LLAMA_3B, STEPS) if cuda else (engines.SMALL, 3)
    engines.WORK.mkdir(parents=True, exist_ok=True)
    engines.make_base(shape)
    make_rows()
    artifacts = engines.WORK / "sweep"
    shutil.rmtree(artifacts, ignore_errors=True)
    settings = {
        "base.path": engines.base_of(shape), "base.gguf_package": "null", "base.gguf_sha256": "null",
        "data.source": ROWS, "data.max_length": 2048, "data.near_duplicates": "null",
        "data.held_out_share": 0.05, "data.validation_rows": 200,
        "sweep.ranks": list(RANKS), "sweep.learning_rates": [2e-4], "sweep.seeds": [7],
        "sweep.steps": steps, "sweep.parallel_arms": options.parallel,
        "train.engine": "compiled", "train.quantization": options.quantization,
        "train.tokens_per_step": TOKENS_A_STEP, "train.gradient_checkpointing": "true",
        "train.save_every_steps": 10_000, "train.logging_steps": 10,
        "train.device": "cuda" if cuda else "cpu",
        "train.dtype": "bfloat16" if cuda else "float32",
    }  # fmt: skip
    flags = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "trainer", "sweep", "--config", "docs/sweep/config.yaml"]
    begun = time.monotonic()
    subprocess.run([*command, "--artifacts", str(artifacts), *flags], cwd=engines.ROOT, check=True)
    seconds = time.monotonic() - begun
    results = {
        "gpu": engines.gpu_name(), "seconds": round(seconds, 1), "steps": steps,
        "quantization": options.quantization, "parallel_arms": options.parallel, "arms": arms(artifacts),
    }  # fmt: skip
    print(json.dumps(results, indent=1))
    card = results["gpu"].removeprefix("NVIDIA ").split()[0].lower() if cuda else "cpu"
    (engines.ROOT / "bench" / "results" / f"sweep-{card}.json").write_text(
        json.dumps(results, indent=1) + "\n"
    )


def arms(artifacts: Path) -> list[dict[str, Any]]:
    records = [json.loads(path.read_text()) for path in sorted(artifacts.glob("runs/*/*/result.json"))]
    keys = ("arm", "steps", "train_seconds", "tokens_per_second", "peak_gpu_memory_gib")
    return [{key: record[key] for key in keys} for record in records]


def make_rows() -> None:
    """Write as many rows as a run of STEPS sees, of TOKENS_A_STEP / ROWS_A_STEP words on average."""
    rng = random.Random(2)
    with ROWS.open("w") as file:
        for _ in range(STEPS * ROWS_A_STEP * 10 // 9):  # a tenth is held out
            count = max(24, min(2000, int(rng.lognormvariate(6.12, 0.6))))
            words = [f"w{rng.randrange(4000)}" for _ in range(count)]
            asked, answer = " ".join(words[: count // 3]), " ".join(words[count // 3 :])
            turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
            file.write(json.dumps({"conversations": turns, "source": "made"}) + "\n")


if __name__ == "__main__":
    main()

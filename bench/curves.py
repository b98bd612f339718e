"""Check that the engines learn the same: 200 steps of the real 135M model on the quickstart's rows with each.

    python bench/curves.py              # on a GPU: plain in fp32 and bf16, compiled, in FP8 too, unsloth
    python bench/curves.py --redraw     # only the page, from bench/results/curves.json

Every case is `python -m trainer arm` on the same rows in the same order, compared with the first case. Only
`plain` runs with several seeds; the distance between them shows the effect of chance. All cases run at
once, because only their losses matter and not their speed. Without a GPU: plain and compiled, a few steps.
The program writes bench/results/curves.json and docs/engines/index.html.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from trainer.fit.choose.intervals import score_interval  # noqa: E402
from trainer.objective.score import RowScore  # noqa: E402
from trainer.pages.charts import Line, curves, losses_scale  # noqa: E402
from trainer.pages.frame import Figure, document, table  # noqa: E402
from trainer.pages.sweep import STYLE  # noqa: E402

RESULT, PAGE = ROOT / "bench" / "results" / "curves.json", ROOT / "docs" / "engines" / "index.html"
WORK = Path(os.environ.get("CURVES_WORK", "/tmp/finechat-curves"))
SEEDS, RANK, RATE = (1, 2, 3), 32, 5e-4
BINS = 50
CPU = {
    "plain in fp32": (SEEDS[0], ["train.dtype=float32"]),
    "plain, seed 1": (SEEDS[0], ["train.dtype=bfloat16"]),
    "compiled": (SEEDS[0], ["train.dtype=bfloat16", "train.engine=compiled"]),
}
GPU = {
    **CPU,
    "compiled, FP8 base": (SEEDS[0], [*CPU["compiled"][1], "train.quantization=fp8"]),
    "unsloth": (SEEDS[0], ["train.dtype=bfloat16", "train.engine=unsloth"]),
    **{f"plain, seed {seed}": (seed, ["train.dtype=bfloat16"]) for seed in SEEDS[1:]},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--redraw", action="store_true")
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    if not options.redraw:
        cases = GPU if torch.cuda.is_available() else CPU
        with ThreadPoolExecutor(len(cases)) as threads:
            futures = {name: threads.submit(run, name, options.steps, *case) for name, case in cases.items()}
        found = {name: future.result() for name, future in futures.items()}
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        RESULT.write_text(json.dumps({"gpu": gpu, "steps": options.steps, "cases": found}) + "\n")
    results = json.loads(RESULT.read_text())
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(results), encoding="utf-8")
    for line in rows(results):
        print(*line, sep=" | ")


def run(name: str, steps: int, seed: int, overrides: list[str]) -> dict[str, Any]:
    """Return one case's losses of every step and validation row, or the end of its output if it failed."""
    artifacts = WORK / name.replace(" ", "-").replace(",", "")
    overrides = [
        *overrides,
        "data.general=null",
        "data.train_rows=null",
        "lora.scaling=null",
        "lora.alpha=32",
    ]
    overrides += ["data.validation_rows=200", "train.tokens_per_step=2048", "train.save_every_steps=10000"]
    if torch.cuda.is_available():
        overrides.append("train.device=cuda")
    flags = [part for override in overrides for part in ("--set", override)]
    command = [sys.executable, "-m", "trainer", "arm", "--config", "trainer/configs/quickstart.yaml"]
    command += ["--rank", str(RANK), "--learning-rate", str(RATE), "--seed", str(seed)]
    command += ["--steps", str(steps), "--artifacts", str(artifacts), *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    results = list(artifacts.glob("runs/*/*/result.json"))
    if done.returncode or not results:
        return {"failed": (done.stdout + done.stderr).strip()[-600:]}
    record = json.loads(results[0].read_text())
    return {
        "step_losses": [loss for _, loss in record["train_curve"]],
        "row_losses": record["validation"]["rows"],
    }


def page(results: dict[str, Any]) -> str:
    cases = {name: case for name, case in results["cases"].items() if "failed" not in case}
    reference = next(iter(cases))
    lines = [
        Line(name, i, binned(case["step_losses"]), [], False) for i, (name, case) in enumerate(cases.items())
    ]
    keys = "".join(
        f'<span class="keyed c{i}"><span class=key></span>{name}</span> ' for i, name in enumerate(cases)
    )
    panel = curves(
        "training loss", lines, results["steps"], losses_scale(lines, results["steps"]), "loss, nats a token"
    )
    body = f"""<h1>Do the engines learn the same?</h1>
<p>{results["steps"]} steps of SmolLM2-135M-Instruct on the quickstart's rows, rank {RANK}, on
{results["gpu"] or "a CPU"}. All cases see the same rows in the same order, except the other seeds of
<code>plain</code>, which vary by chance alone.</p>
<p>{keys}</p>
<div class=panels><div>{panel}</div></div>
<h2>Validation loss against {reference}</h2>
{table(["case", "validation loss", "difference [95%]", "largest difference of a step"], rows(results))}
<p class=quiet>Nats a token; intervals by bootstrap over the validation rows. Losses are means of {BINS} bins
of steps. Every validation loss is measured by transformers on the unquantised base. Made by
<code>bench/curves.py</code>.</p>"""
    return document("Do the engines learn the same?", body, STYLE)


def rows(results: dict[str, Any]) -> list[list[Any]]:
    """Return a line per case. Steps are compared if the case saw the same rows at each as the first one."""
    cases = results["cases"]
    first = next(iter(cases))
    lines: list[list[Any]] = []
    for name, case in cases.items():
        if "failed" in case:
            lines.append([name, "failed: " + case["failed"].splitlines()[-1], "", ""])
            continue
        loss = score_interval([RowScore(*row) for row in case["row_losses"]]).value
        found = against_first(cases, name)
        difference = f"{found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
        pairs = zip(case["step_losses"], cases[first]["step_losses"], strict=True)
        largest = max(abs(a - b) for a, b in pairs)
        same_order = not any(name.endswith(f"seed {seed}") for seed in SEEDS[1:])
        lines.append(
            [
                name,
                Figure(f"{loss:.4f}"),
                "" if name == first else difference,
                Figure(f"{largest:.4f}") if name != first and same_order else "",
            ]
        )
    return lines


def against_first(cases: dict[str, Any], name: str) -> Any:
    own, first = ([RowScore(*row) for row in cases[x]["row_losses"]] for x in (name, next(iter(cases))))
    return score_interval(own, minus=first)


def binned(losses: list[float]) -> list[tuple[float, float]]:
    size = max(1, len(losses) // BINS)
    return [(i + size / 2, mean(losses[i : i + size])) for i in range(0, len(losses), size)]


if __name__ == "__main__":
    main()

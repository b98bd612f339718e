"""Do the engines learn the same? 200 steps of the real 135M model on the quickstart's rows, by each of them.

    python bench/curves.py              # on a GPU: plain (three seeds), compiled, compiled in FP8, unsloth
    python bench/curves.py --redraw     # the page alone, from bench/results/curves.json

Every case is `python -m trainer arm` on the same rows in the same order; only the seeds of `plain` differ,
and how far those lie apart is the noise that the others are held against. All cases run at once: it is
their losses that count, not their speed. Without a GPU: plain and compiled in fp32, few steps. Writes
bench/results/curves.json and docs/engines/index.html.
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

from trainer.fit.intervals import loss_interval  # noqa: E402
from trainer.fit.loss import RowLoss  # noqa: E402
from trainer.fit.page import STYLE  # noqa: E402
from trainer.fit.plots import Bar, Line, curves, forest, losses_scale  # noqa: E402
from trainer.html_page import Figure, document, table  # noqa: E402

RESULT, PAGE = ROOT / "bench" / "results" / "curves.json", ROOT / "docs" / "engines" / "index.html"
WORK = Path(os.environ.get("CURVES_WORK", "/tmp/finechat-curves"))
SEEDS, RANK, RATE = (1, 2, 3), 32, 5e-4
REFERENCE = f"plain, seed {SEEDS[0]}"
BINS = 50
GPU = {
    **{f"plain, seed {seed}": (seed, []) for seed in SEEDS},
    "compiled": (SEEDS[0], ["train.engine=compiled"]),
    "compiled, FP8 base": (SEEDS[0], ["train.engine=compiled", "train.quantization=fp8"]),
    "unsloth": (SEEDS[0], ["train.engine=unsloth"]),
}
CPU = {name: GPU[name] for name in (REFERENCE, "compiled")}


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
    told = json.loads(RESULT.read_text())
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(told), encoding="utf-8")
    for row in rows(told):
        print(*row, sep=" | ")


def run(name: str, steps: int, seed: int, overrides: list[str]) -> dict[str, Any]:
    """Losses of every step and of every validation row, of one case; or its last words."""
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
        overrides += ["train.device=cuda", "train.dtype=bfloat16"]
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


def page(told: dict[str, Any]) -> str:
    cases = {name: case for name, case in told["cases"].items() if "failed" not in case}
    lines = [
        Line(name, i, binned(case["step_losses"]), [], False) for i, (name, case) in enumerate(cases.items())
    ]
    keys = "".join(
        f'<span class="keyed c{i}"><span class=key></span>{name}</span> ' for i, name in enumerate(cases)
    )
    bars = []
    for i, name in enumerate(cases):
        if name != REFERENCE:
            found = against_reference(cases, name)
            hollow = found.low <= 0 <= found.high
            bars.append(Bar(name, i, found.value, found.low, found.high, hollow, False))
    panel = curves("training loss", lines, told["steps"], losses_scale(lines, told["steps"]))
    body = f"""<h1>Do the engines learn the same?</h1>
<p>{told["steps"]} steps of SmolLM2-135M-Instruct on the quickstart's rows, rank {RANK}, on
{told["gpu"] or "a CPU"}. All cases see the same rows in the same order, except the other seeds of
<code>plain</code>, which show what luck alone does.</p>
<p>{keys}</p>
<div class=panels><div>{panel}</div></div>
<h2>Validation loss against {REFERENCE}</h2>
<div class=forest>{forest(bars)}</div>
{table(["case", "validation loss", "difference [95%]", "largest difference of a step"], rows(told))}
<p class=quiet>Nats a token; intervals by bootstrap over the validation rows. Losses are means of {BINS} bins
of steps. Every validation loss is measured by transformers on the unquantised base. Made by
<code>bench/curves.py</code>.</p>"""
    return document("Do the engines learn the same?", body, STYLE)


def rows(told: dict[str, Any]) -> list[list[Any]]:
    """A line for every case; its steps are compared where it saw what the reference saw."""
    cases = told["cases"]
    lines: list[list[Any]] = []
    for name, case in cases.items():
        if "failed" in case:
            lines.append([name, "failed: " + case["failed"].splitlines()[-1], "", ""])
            continue
        loss = loss_interval([RowLoss(*row) for row in case["row_losses"]]).value
        found = against_reference(cases, name)
        difference = f"{found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
        pairs = zip(case["step_losses"], cases[REFERENCE]["step_losses"], strict=True)
        largest = max(abs(a - b) for a, b in pairs)
        own = name == REFERENCE
        other = name.startswith("plain")
        lines.append(
            [name, Figure(f"{loss:.4f}"), "" if own else difference, "" if other else f"{largest:.4f}"]
        )
    return lines


def against_reference(cases: dict[str, Any], name: str) -> Any:
    own, reference = ([RowLoss(*row) for row in cases[x]["row_losses"]] for x in (name, REFERENCE))
    return loss_interval(own, minus=reference)


def binned(losses: list[float]) -> list[tuple[float, float]]:
    size = max(1, len(losses) // BINS)
    return [(i + size / 2, mean(losses[i : i + size])) for i in range(0, len(losses), size)]


if __name__ == "__main__":
    main()

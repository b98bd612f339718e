"""Make docs/sweep: a sweep of rank, learning rate and seed, and what it shows.

    .venv/trainer/bin/python bench/sweep.py --data FOLDER --artifacts DIRECTORY
    .venv/trainer/bin/python bench/sweep.py --again

The program runs the arms of docs/sweep/config.yaml that DIRECTORY does not hold finished (this needs a
GPU). Then it writes docs/sweep: results.json, index.html, and rows.npz with every arm's loss on every
validation row. It prints how much ranks differ at each learning rate, and learning rates at each rank. With
--again nothing runs: the program chooses again from rows.npz and rewrites results.json and index.html.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "sweep"
sys.path.insert(0, str(ROOT))

from trainer import base_model  # noqa: E402
from trainer.config_file import load  # noqa: E402
from trainer.data.prepare import prepare  # noqa: E402
from trainer.files import write_json  # noqa: E402
from trainer.fit.arm import Arm, Run, Setting, arms, place_of, read_run, run_name  # noqa: E402
from trainer.fit.choose.choice import choose  # noqa: E402
from trainer.fit.choose.comparison import Standing  # noqa: E402
from trainer.fit.choose.scores import scores  # noqa: E402
from trainer.fit.choose.summary import compare_with_best, describe_choice  # noqa: E402
from trainer.fit.run.processes import run_arms  # noqa: E402
from trainer.fit.run.sweep import Sweep  # noqa: E402
from trainer.objective import sft  # noqa: E402
from trainer.objective.score import RowScore  # noqa: E402
from trainer.pages.sweep import write_page  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the chat rows")
    parser.add_argument("--artifacts", type=Path, help="directory of the runs")
    parser.add_argument("--again", action="store_true", help="choose again from rows.npz")
    options = parser.parse_args()
    if options.again:
        choose_again()
    elif options.data and options.artifacts:
        run_sweep(options)
    else:
        parser.error("give --data and --artifacts, or --again")
    print("\n".join(claims(load_rows())))


def run_sweep(options: argparse.Namespace) -> None:
    """Run what is not finished and copy the page here."""
    overrides = [f"data.source={options.data.absolute()}"]
    config = load(PAGE / "config.yaml", overrides)
    base = base_model.fetch(config.base, options.artifacts)
    prepared = prepare(config, base, options.artifacts)
    command = ["arm", "--config", str(PAGE / "config.yaml"), "--artifacts", str(options.artifacts)]
    here = partial(run_arms, command=[*command, "--set", *overrides], parallel=config.sweep.parallel_arms)
    Sweep(config, base, prepared, options.artifacts, here, write_page).run()
    newest = max(options.artifacts.glob("sweeps/*/results.json"), key=lambda p: p.stat().st_mtime)
    for name in ("results.json", "index.html"):
        shutil.copy(newest.with_name(name), PAGE / name)
    directories = {
        arm: place_of(config, base, prepared.fingerprint, arm, options.artifacts).directory
        for arm in arms(config)
    }
    folder = run_name(config, config.sweep.steps)
    save_rows(run for arm, path in directories.items() if (run := read_run(path / folder, arm)))


def choose_again() -> None:
    """Rewrite what follows from the rows in results.json, and the page."""
    results = json.loads((PAGE / "results.json").read_text())
    write_json(PAGE / "results.json", {**results, **chosen(results)})
    write_page(PAGE, {**results, **chosen(results)})


def chosen(results: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of results.json that follow from the rows alone."""
    standing = Standing(scores(load_rows(), sft.SCORE), sft.SCORE)
    measured = {setting["name"]: setting for setting in results["settings"]}
    settings = [
        {**measured[score.setting.name], **compare_with_best(standing, score)} for score in standing.scores
    ]
    return {**describe_choice(standing, choose(standing)), "settings": settings}


def save_rows(runs: Iterable[Run]) -> None:
    """Write rows.npz: tokens (rows,), nll (arms, rows), and rank, learning_rate, seed (arms,)."""
    whole = [run for run in runs if not run.diverged]
    np.savez_compressed(
        PAGE / "rows.npz",
        tokens=np.array([row.weight for row in whole[0].validation], np.int32),
        nll=np.array([[row.total for row in run.validation] for run in whole], np.float32),
        rank=np.array([run.arm.setting.rank for run in whole]),
        learning_rate=np.array([run.arm.setting.learning_rate for run in whole]),
        seed=np.array([run.arm.seed for run in whole]),
    )


def load_rows() -> list[Run]:
    """Return the runs of rows.npz, without their adapters."""
    with np.load(PAGE / "rows.npz") as held:
        arm_columns = [held[name].tolist() for name in ("rank", "learning_rate", "seed", "nll")]
        tokens = held["tokens"].tolist()
    return [
        Run(
            Arm(Setting(rank, rate), seed),
            Path(),
            [RowScore(x, n, False) for x, n in zip(nll, tokens, strict=True)],
            None,
            {},
        )
        for rank, rate, seed, nll in zip(*arm_columns, strict=True)
    ]


def claims(runs: Sequence[Run]) -> list[str]:
    """Return lines with the largest difference between ranks at each rate, and between rates at each rank."""
    lines = []
    for rate in sorted({run.arm.setting.learning_rate for run in runs}):
        lines.append(f"at {rate:g}: {_range([r for r in runs if r.arm.setting.learning_rate == rate])}")
    for rank in sorted({run.arm.setting.size for run in runs}):
        lines.append(f"at rank {rank}: {_range([r for r in runs if r.arm.setting.size == rank])}")
    return lines


def _range(runs: Sequence[Run]) -> str:
    standing = Standing(scores(runs, sft.SCORE), sft.SCORE)
    best, worst = standing.best, standing.scores[-1]
    gap = standing.difference(worst).interval
    return f"{best.setting.name} {best.cost:.4f} is best, {worst.setting.name} worse by {gap}"


if __name__ == "__main__":
    main()

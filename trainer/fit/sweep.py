"""Stage `sweep`: every arm of the grid, each in a process of its own, then the choice.

A finished arm is never run again; one that fails does not cost the others. Arms see the same rows in
the same order. Writes `sweeps/<hash>.json` with each arm's loss, the differences and the reason.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.base_model import BaseModel
from trainer.config import RunConfig, fingerprint
from trainer.data.prepare import Prepared
from trainer.errors import ArmError
from trainer.files import write_json
from trainer.fit.arm import Arm, ArmResult, arm_directory, arms, read_result
from trainer.fit.select import select
from trainer.progress import say


def sweep(
    config: RunConfig, base: BaseModel, prepared: Prepared, artifacts: Path, command: Sequence[str]
) -> tuple[ArmResult, dict[str, Any]]:
    """Run what is unfinished, then choose.

    command: the `train` verb with its configuration; the arm's own flags are appended to it.
    Returns the winner and the manifest's `selection`. Raises: ArmError if no arm finished.
    """
    grid = {arm: arm_directory(config, base, prepared.fingerprint, arm, artifacts) for arm in arms(config)}
    waiting = [arm for arm, directory in grid.items() if read_result(directory, arm) is None]
    say(f"  {len(grid)} arms, {len(grid) - len(waiting)} finished before")
    failed = _run_all(waiting, config.sweep.parallel_arms, command)
    results = [r for arm, directory in grid.items() if (r := read_result(directory, arm))]
    if not results:
        raise ArmError("no arm finished: " + "; ".join(f"{a.name}: {why}" for a, why in failed.items()))
    winner, selection = select(results)
    selection["failed"] = {arm.name: why for arm, why in failed.items()}
    key = fingerprint([directory.name for directory in grid.values()])
    write_json(artifacts / "sweeps" / f"{key[:16]}.json", selection)
    say(f"  {selection['reason']}")
    return winner, selection


def _run_all(waiting: Sequence[Arm], parallel: int, command: Sequence[str]) -> dict[Arm, str]:
    """Run the arms, at most `parallel` at once; return those that failed with the reason."""
    parallel = min(parallel, len(waiting)) or 1
    threads = max(1, len(os.sched_getaffinity(0)) // parallel)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    failed: dict[Arm, str] = {}
    running: dict[Arm, subprocess.Popen[bytes]] = {}
    queue = list(waiting)
    try:
        while queue or running:
            while queue and len(running) < parallel:
                arm = queue.pop(0)
                running[arm] = subprocess.Popen(
                    [sys.executable, "-m", "trainer", *command, *_flags(arm)],
                    env=environment,
                )
            done = _wait_any(running)
            code = running.pop(done).returncode
            if code != 0:
                failed[done] = f"exit {code}"
                say(f"  {done.name}: failed with exit {code}; the other arms go on")
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    return failed


def _wait_any(running: dict[Arm, subprocess.Popen[bytes]]) -> Arm:
    """Block until one of the arms ends."""
    while True:
        for arm, process in running.items():
            if process.poll() is not None:
                return arm
        time.sleep(0.1)


def _flags(arm: Arm) -> list[str]:
    return [
        "--rank", str(arm.rank), "--learning-rate", repr(arm.learning_rate), "--seed", str(arm.seed),
    ]  # fmt: skip

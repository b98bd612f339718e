"""Runs, each in a process of its own: what one leaves in memory, or its end, does not touch the others.

A run may be shared by several processes, which torchrun starts. A process writes what it has to say to
`output.txt` in its run's directory; how far it is, we read from its `log.jsonl`.
"""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from trainer.fit.run.arm import Arm
from trainer.fit.run.callbacks import LOG, last_step
from trainer.fit.run.node import last_words, start
from trainer.progress import Progress

LOOK_EVERY_S = 0.2


def run_arms(
    directories: Mapping[Arm, Path],
    steps: int | None,
    command: Sequence[str],
    parallel: int = 1,
    processes: int = 1,
) -> dict[Arm, str]:
    """Run the arms and return those that failed, each with its last words.

    directories: where each arm's run lives. command: the `arm` verb with its configuration; the arm's
    own flags are appended to it. parallel: at once, at most. processes: that share each run.
    """
    parallel = min(parallel, len(directories)) or 1
    threads = max(1, len(os.sched_getaffinity(0)) // (parallel * processes))
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    failed: dict[Arm, str] = {}
    running: dict[Arm, subprocess.Popen[bytes]] = {}
    waiting = list(directories)
    with Progress() as progress:
        try:
            while waiting or running:
                while waiting and len(running) < parallel:
                    arm = waiting.pop(0)
                    line = [*_launcher(processes), *command, *arm_flags(arm, steps)]
                    running[arm] = start(line, directories[arm], environment)
                time.sleep(LOOK_EVERY_S)
                for arm, process in list(running.items()):
                    tell(arm, directories[arm], progress)
                    if process.poll() is None:
                        continue
                    del running[arm]
                    if process.returncode != 0:
                        failed[arm] = last_words(directories[arm], process.returncode)
                        progress.say(f"  {arm.name}: failed: {failed[arm]}")
        finally:
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.wait()
    return failed


def _launcher(processes: int) -> list[str]:
    if processes == 1:
        return [sys.executable, "-m", "trainer"]
    shared = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [sys.executable, *shared, "-m", "trainer"]


def tell(arm: Arm, directory: Path, progress: Progress) -> None:
    """How far its run is, by its log."""
    line = last_step(directory / LOG)
    if line:
        progress.update(arm.name, line["step"], line["steps"], line["loss"])


def arm_flags(arm: Arm, steps: int | None) -> list[str]:
    """Of the `arm` verb."""
    flags = [
        "--rank", str(arm.setting.rank), "--learning-rate", repr(arm.setting.learning_rate),
        "--seed", str(arm.seed),
    ]  # fmt: skip
    return flags if steps is None else [*flags, "--steps", str(steps)]

"""Run each arm in its own process, so that neither its memory nor its end affects the others.

torchrun starts the processes where several share a run. A process writes its output to `output.txt` in its
run's directory, and its progress is read from `log.jsonl`.
"""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from trainer.fit.arm import Arm
from trainer.fit.run.callbacks import LOG, last_step
from trainer.fit.run.node import failure_of, start
from trainer.progress import Progress

POLL_S = 0.2


def run_arms(
    directories: Mapping[Arm, Path],
    steps: int | None,
    command: Sequence[str],
    parallel: int = 1,
    processes: int = 1,
) -> dict[Arm, str]:
    """Run the arms and return those that failed, and why.

    directories: each arm's run. command: the `arm` verb with its configuration, to which the arm's own
    flags are appended. parallel: the most runs at once. processes: the number that share each run.
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
                time.sleep(POLL_S)
                for arm, process in list(running.items()):
                    show_progress(arm, directories[arm], progress)
                    if process.poll() is None:
                        continue
                    del running[arm]
                    if process.returncode != 0:
                        failed[arm] = failure_of(directories[arm], process.returncode)
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


def show_progress(arm: Arm, directory: Path, progress: Progress) -> None:
    """Show how far the arm's run is, by its log."""
    line = last_step(directory / LOG)
    if line:
        progress.update(arm.name, line["step"], line["steps"], line["loss"])


def arm_flags(arm: Arm, steps: int | None) -> list[str]:
    """Return the flags with which the `arm` verb runs this arm."""
    flags = ["--learning-rate", repr(arm.setting.learning_rate), "--seed", str(arm.seed)]
    if arm.setting.rank:
        flags = ["--rank", str(arm.setting.rank), *flags]
    return flags if steps is None else [*flags, "--steps", str(steps)]

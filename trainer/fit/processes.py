"""Runs, each in a process of its own: what one leaves in memory, or its end, does not touch the others.

A run may be shared by several processes, which torchrun starts. A process writes what it has to say to
`output.txt` in its run's directory; how far it is, we read from its `log.jsonl`.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from trainer.fit.arm import Arm
from trainer.fit.callbacks import LOG, last_step
from trainer.progress import Progress

LOOK_EVERY_S = 0.2
OUTPUT = "output.txt"
NEARLY_FULL_BYTES = 2**16  # a write fails before the last byte is used


def run_arms(
    directories: Mapping[Arm, Path],
    steps: int | None,
    parallel: int,
    command: Sequence[str],
    processes: int = 1,
) -> dict[Arm, str]:
    """Run the arms, at most `parallel` at once; return those that failed, each with its last words.

    directories: where each arm's run lives. command: the `arm` verb with its configuration; the arm's
    own flags are appended to it. processes: that share each run.
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
                    line = [*_launcher(processes), *command, *_flags(arm, steps)]
                    running[arm] = _start(line, directories[arm], environment)
                time.sleep(LOOK_EVERY_S)
                for arm, process in list(running.items()):
                    _tell(arm, directories[arm], progress)
                    if process.poll() is None:
                        continue
                    del running[arm]
                    if process.returncode != 0:
                        failed[arm] = _last_words(directories[arm], process.returncode)
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


def _start(line: Sequence[str], directory: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / OUTPUT).open("w") as output:
        return subprocess.Popen(
            line,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=_end_with_parent,
        )


def _end_with_parent() -> None:
    """Linux: the kernel ends the child if we are killed ourselves (PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _tell(arm: Arm, directory: Path, progress: Progress) -> None:
    line = last_step(directory / LOG)
    if line:
        progress.update(arm.name, line["step"], line["steps"], line["loss"])


def _last_words(directory: Path, code: int) -> str:
    lines = (directory / OUTPUT).read_text(encoding="utf-8", errors="replace").split("\n")
    said = [line for line in lines if line.strip()]
    if not said and shutil.disk_usage(directory).free < NEARLY_FULL_BYTES:
        return f"the disk under {directory} is full"  # so full that the process could not tell
    told = [line for line in said if line.startswith("trainer: ")]  # torchrun has words of its own after them
    return (told or said)[-1].removeprefix("trainer: ") if said and code > 0 else f"exit {code}"


def _flags(arm: Arm, steps: int | None) -> list[str]:
    flags = [
        "--rank", str(arm.setting.rank), "--learning-rate", repr(arm.setting.learning_rate),
        "--seed", str(arm.seed),
    ]  # fmt: skip
    return flags if steps is None else [*flags, "--steps", str(steps)]

"""One run's process on one machine, for a sweep here or, through Ray, elsewhere.

Imports nothing large: a Ray worker that only waits for the process imports this.
"""

import ctypes
import importlib.metadata
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from trainer.errors import MissingError
from trainer.identity import made_by

OUTPUT = "output.txt"
NEARLY_FULL_BYTES = 2**16  # a write fails before the last byte is used
ROOT = Path(__file__).resolve().parents[3]


def start(line: Sequence[str], directory: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a run's process, which ends with this one."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / OUTPUT).open("w") as output:
        return subprocess.Popen(
            line,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=_end_with_parent,
        )


def last_words(directory: Path, code: int) -> str:
    """Of a process that ended with `code`, which is not 0."""
    lines = (directory / OUTPUT).read_text(encoding="utf-8", errors="replace").split("\n")
    said = [line for line in lines if line.strip()]
    if not said and shutil.disk_usage(directory).free < NEARLY_FULL_BYTES:
        return f"the disk under {directory} is full"  # so full that the process could not tell
    told = [line for line in said if line.startswith("trainer: ")]  # torchrun has words of its own after them
    return (told or said)[-1].removeprefix("trainer: ") if said and code > 0 else f"exit {code}"


def on_node(
    arguments: Sequence[str], directory: Path, cpus: int, gpus: float, expected: Mapping[str, str]
) -> str | None:
    """One run, on the node that Ray chose: None, or its last words if it failed.

    expected: the `versions` that the sweep was started with. Raises: MissingError if this node differs.
    """
    here = f"the node {socket.gethostname()}"
    if not directory.parents[2].is_dir():
        raise MissingError(
            f"{here} has no {directory.parents[2]}: put the artifacts where all nodes share them"
        )
    found = versions()
    if other := [name for name in {**expected, **found} if found.get(name) != expected.get(name)]:
        told = ", ".join(f"{name} {found.get(name)} and not {expected.get(name)}" for name in other)
        raise MissingError(f"{here} has {told}: arms would not compare; give all nodes the same")
    environment = {**os.environ, "OMP_NUM_THREADS": str(cpus)}
    if not gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    line = [sys.executable, "-m", "trainer", *arguments]
    code = start(line, directory, {**environment, "PYTHONPATH": str(ROOT)}).wait()
    return last_words(directory, code) if code else None


def versions() -> dict[str, str]:
    """Return what all nodes must have alike: Python, Ray, and what makes a run's result."""
    return {"Python": platform.python_version(), "ray": importlib.metadata.version("ray"), **made_by()}


def _end_with_parent() -> None:
    """Linux: the kernel ends the child if we are killed ourselves (PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)

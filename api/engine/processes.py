"""vLLM's processes: found, killed, and killed even if this one cannot do it any more."""

import contextlib
import subprocess
from collections.abc import Iterable

import psutil


def kill_engine_processes() -> None:
    """Those of all engines."""
    kill(engine_processes())


def kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
            process.kill()
            process.wait(timeout=5)


def engine_processes() -> list[psutil.Process]:
    """All that descends from this process but multiprocessing's own resource tracker."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if not any("resource_tracker" in word for word in process.cmdline()):
                found.append(process)
    return found


def start_watchdog(processes: Iterable[psutil.Process]) -> subprocess.Popen[bytes]:
    """Should this process be killed outright, vLLM's would live on with the model in memory.

    A shell reads from a pipe that only this process holds open; at its end it kills them. The
    pipe lasts as long as the returned object.
    """
    pids = [str(process.pid) for process in processes]
    return subprocess.Popen(
        ["/bin/sh", "-c", 'read -r _; kill -KILL "$@"', "engine-watch", *pids],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

"""Find, kill and watch vLLM's processes.

vLLM starts its processes with `multiprocessing`, and nothing else in this service does. So an engine process
is a `multiprocessing` child of this process, or one of that child's descendants. The other children are not:
the grammar worker, the watchdog, the fork server and Python's resource tracker.
"""

import contextlib
import multiprocessing
import subprocess
import time
from collections.abc import Iterable

import psutil

from api.engine import fork_server

_KILL_TIMEOUT_S = 5.0


def engine_processes() -> list[psutil.Process]:
    """Return the running processes of all engines.

    An engine's resource tracker is left out: it cleans up after the others and then ends by itself.
    """
    found = []
    for child in multiprocessing.active_children():
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(child.pid)
            found += [process, *filter(_is_no_tracker, process.children(recursive=True))]
    return found


def kill(processes: Iterable[psutil.Process]) -> None:
    """Kill `processes` and wait until they have ended.

    This reads no exit code, because `multiprocessing` must: it takes a child whose exit code it cannot read
    for a running one, and another process may soon have that id.
    """
    killed = list(processes)
    for process in killed:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    while any(map(_runs, killed)) and time.monotonic() < deadline:
        time.sleep(0.01)


def kill_all_engines() -> None:
    """Kill the processes of all engines and the fork server, which takes seconds to end by itself."""
    kill(engine_processes())
    with contextlib.suppress(psutil.NoSuchProcess):
        pid = fork_server.pid()
        kill([psutil.Process(pid)] if pid else [])


def start_watchdog(processes: Iterable[psutil.Process]) -> subprocess.Popen[bytes]:
    """Start a shell that kills `processes` when this process ends, however it ends.

    If this process were killed outright, vLLM's would live on with the model in memory. The shell reads from
    a pipe that only this process holds open. The pipe lasts as long as the returned object.
    """
    pids = [str(process.pid) for process in processes]
    return subprocess.Popen(
        ["/bin/sh", "-c", 'read -r _; kill -KILL "$@"', "engine-watch", *pids],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _is_no_tracker(process: psutil.Process) -> bool:
    try:
        return not any("resource_tracker" in word for word in process.cmdline())
    except psutil.NoSuchProcess:
        return False

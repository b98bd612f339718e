"""Start vLLM's engine process as a fork of a process that has already imported vLLM.

A new process would have to import vLLM first, which on a GPU takes as long as the rest of the engine's start.
Python's fork server imports vLLM in parallel with this process, so the first start waits less and a restart
or a swap does not wait at all. The fork server has one thread and never touches a GPU, so forking it is
safe.
"""

import contextlib
import multiprocessing
import os
import signal
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess

_PRELOADED = ["vllm.v1.engine.core"]
_started = False


class _Process(ForkServerProcess):
    """A forked process with the environment of the moment it is started, as a new process would have."""

    _environment: dict[str, str]

    def start(self) -> None:
        self._environment = dict(os.environ)
        super().start()

    def run(self) -> None:
        # Ctrl-C reaches the whole process group, and a drain needs the engine (as in engine.py).
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        with contextlib.suppress(ImportError):
            from setproctitle import getproctitle

            getproctitle()  # locates the title, which lies next to the environment, before that moves
        os.environ.clear()
        os.environ.update(self._environment)
        super().run()


class _Context(ForkServerContext):
    Process = _Process


def start() -> None:
    """Start the fork server, which begins to import vLLM. vLLM's environment must be set by then."""
    global _started
    multiprocessing.set_forkserver_preload(_PRELOADED)
    forkserver.ensure_running()
    _started = True


def pid() -> int | None:
    """Return the fork server's process id, or None if there is no fork server."""
    found: int | None = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    return found


def use_for_vllm() -> None:
    """Make vLLM fork its engine process from the fork server. Without one vLLM starts a new process."""
    if _started:
        from vllm.v1.engine import utils

        utils.get_mp_context = _Context

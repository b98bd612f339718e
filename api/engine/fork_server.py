"""vLLM's engine process as a fork of one that has imported vLLM already.

Started as a new process it imports what this one has just imported, and only then: on a GPU as long again as
all that the engine itself does. Python's fork server imports beside this process, so that the first start, a
restart and a swap wait for none of it. It has one thread and never touches a GPU, so its forks are sound.
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
    """With the environment of the moment when it is started, as any new process would have it."""

    _environment: dict[str, str]

    def start(self) -> None:
        self._environment = dict(os.environ)
        super().start()

    def run(self) -> None:
        # As where engine.py starts it: Ctrl-C reaches the whole group, and the drain needs the engine.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        with contextlib.suppress(ImportError):
            from setproctitle import getproctitle

            getproctitle()  # finds the title's place, beside the environment, which moves now
        os.environ.clear()
        os.environ.update(self._environment)
        super().run()


class _Context(ForkServerContext):
    Process = _Process


def start() -> None:
    """Start importing, with vLLM's environment set."""
    global _started
    multiprocessing.set_forkserver_preload(_PRELOADED)
    forkserver.ensure_running()
    _started = True


def pid() -> int | None:
    """Return the fork server's process id, or None if there is no fork server."""
    found: int | None = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    return found


def use_for_vllm() -> None:
    """Have vLLM fork its engine process, if there is what to fork; else it starts a new one."""
    if _started:
        from vllm.v1.engine import utils

        utils.get_mp_context = _Context

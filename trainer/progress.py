"""What a person sees of a long job: one line when a stage begins, one when it ends.

Lines go to standard output, flushed, so that they are whole in a terminal, a log and a pipe alike.
"""

import contextlib
import time
from collections.abc import Iterator


def say(line: str) -> None:
    print(line, flush=True)


class Stages:
    """Numbers the stages of one run: `[2/5] prepare: ...`, `[2/5] prepare done in 3.1 s; left: ...`."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names

    @contextlib.contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        number = self._names.index(name) + 1
        label = f"[{number}/{len(self._names)}] {name}"
        left = ", ".join(self._names[number:]) or "nothing"
        say(f"{label}: {what}")
        begun = time.monotonic()
        yield
        say(f"{label} done in {time.monotonic() - begun:.1f} s; left: {left}")

    def skipped(self, name: str, why: str) -> None:
        say(f"[{self._names.index(name) + 1}/{len(self._names)}] {name}: skipped, {why}")

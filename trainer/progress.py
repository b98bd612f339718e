"""Report a long job: print a line when a stage begins and ends, and the progress of its runs.

On a terminal each run has a bar; elsewhere (a log, a pipe) it has about ten lines. All output goes to
standard output and is flushed.
"""

import contextlib
import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

LINES = 10  # for each run, without a terminal


def say(line: str) -> None:
    """Print a line at once, in the characters that standard output has."""
    encoding = sys.stdout.encoding or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding), flush=True)


class Stages:
    """Number the stages of one run: `[2/5] prepare: ...`, `[2/5] prepare done in 3.1 s; left: ...`."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names

    @contextlib.contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        """Print a line before and after the block."""
        number = self._names.index(name) + 1
        label = f"[{number}/{len(self._names)}] {name}"
        left = ", ".join(self._names[number:]) or "nothing"
        say(f"{label}: {what}")
        begun = time.monotonic()
        yield
        say(f"{label} done in {time.monotonic() - begun:.1f} s; left: {left}")

    def skipped(self, name: str, why: str) -> None:
        """Print that a stage had nothing to do."""
        say(f"[{self._names.index(name) + 1}/{len(self._names)}] {name}: skipped, {why}")


class Progress:
    """Display step, loss and remaining time of several runs, while the block lasts."""

    def __init__(self) -> None:
        self._tasks: dict[str, _Task] = {}
        self._bars = _bars() if sys.stdout.isatty() else None

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def update(self, name: str, step: int, steps: int, loss: float) -> None:
        """Report that a run has reached a step."""
        task = self._tasks.setdefault(name, _Task(step))
        if step == task.shown:
            return
        if self._bars:
            if task.bar is None:
                task.bar = self._bars.add_task(name, total=steps, loss=loss)
            self._bars.update(task.bar, completed=step, loss=loss)
            task.shown = step
        elif step * LINES // steps > task.shown * LINES // steps or step == steps:
            task.shown = step
            left = (time.monotonic() - task.begun) / max(1, step - task.first) * (steps - step)
            say(f"  {name}: step {step}/{steps}, loss {loss:.3f}, about {left:.0f} s left")

    def say(self, line: str) -> None:
        """Print a line that stays, above the bars."""
        if self._bars:
            self._bars.console.print(line, markup=False, highlight=False)
        else:
            say(line)


class _Task:
    """first: the step at which watching began; a resumed run has done the steps before it."""

    def __init__(self, first: int) -> None:
        self.first = self.shown = first
        self.begun = time.monotonic()
        self.bar: TaskID | None = None


def _bars() -> Bars:
    return Bars(
        TextColumn("  {task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}  loss {task.fields[loss]:.3f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(file=sys.stdout),
    )

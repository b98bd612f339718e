"""Act between the steps of a run: write its log, show progress, stop if it diverged, seal checkpoints."""

import contextlib
import json
import math
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from trainer.fit.run.checkpoint import keep_trunk, seal
from trainer.progress import Progress

LOG = "log.jsonl"
LOGGED = (
    "loss", "task_loss", "general_loss", "eval_loss", "grad_norm", "learning_rate", "tokens_per_second",
)  # fmt: skip
TAIL_BYTES = 2048
WINDOW = 5  # log entries whose mean counts as the loss at the start, and as the loss now


class DivergedError(Exception):
    """The loss is not finite, or far above where it began; says which, and when."""


class Log(TrainerCallback):
    """Appends every log entry to `log.jsonl`: step, steps, seconds, loss, grad_norm, ..."""

    def __init__(self, run: Path) -> None:
        self._path = run / LOG
        self._begun = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forget what a killed run logged after the checkpoint that this one continues from."""
        kept = [line for line in read_log(self._path) if line["step"] <= state.global_step]
        self._path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        entry = {name: float(logs[name]) for name in LOGGED if name in logs}
        if entry:
            seconds = round(time.monotonic() - self._begun, 2)
            line = {"step": state.global_step, "steps": state.max_steps, "seconds": seconds, **entry}
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def last_step(path: Path) -> dict[str, Any] | None:
    """Return the newest training step of a log, from its last few lines, or None."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            text = file.read().partition(b"\n")[2]  # the first line may be cut off
    except FileNotFoundError:
        return None
    steps = [entry for entry in _whole_lines(text) if "loss" in entry]
    return steps[-1] if steps else None


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a log, without one that is being written or was cut off."""
    try:
        return list(_whole_lines(path.read_bytes()))
    except FileNotFoundError:
        return []


def _whole_lines(text: bytes) -> Iterator[dict[str, Any]]:
    """Yield the entries of a log. A power cut may leave a line cut off, or full of zeros."""
    for line in text.split(b"\n")[:-1]:
        with contextlib.suppress(ValueError):
            yield json.loads(line)


class ShowProgress(TrainerCallback):
    """Shows the progress of one run."""

    def __init__(self, name: str, progress: Progress) -> None:
        self._name = name
        self._progress = progress

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            self._progress.update(self._name, state.global_step, state.max_steps, float(logs["loss"]))


class StopDiverged(TrainerCallback):
    """Ends a run that diverged before anything of it is saved: its last checkpoint stays good.

    In float16 the loss is scaled up. A step whose scaled gradient is not finite is skipped, and the scale
    halved; that is how the scale is found. So it is a divergence only once no scale is left to give up.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_save:
            control.should_log = True

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        # accelerate's step_was_skipped does not see it where the optimizer is fused.
        scaler = getattr(optimizer, "scaler", None)
        may_skip = scaler is not None and scaler.get_scale() >= 1
        for name in ("loss", "eval_loss") if may_skip else ("loss", "grad_norm", "eval_loss"):
            if not math.isfinite(logs.get(name, 0)):
                raise DivergedError(f"{name} is {logs[name]} at step {state.global_step}")
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        if len(losses) < 2 * WINDOW:
            return
        start, now = statistics.fmean(losses[:WINDOW]), statistics.fmean(losses[-WINDOW:])
        if now > 2 * start + 1:
            raise DivergedError(f"the loss is {now:.2f} at step {state.global_step}, it began at {start:.2f}")


class Patience(TrainerCallback):
    """Stops when the last `patience` evaluations brought nothing better; reads only what is resumed too."""

    def __init__(self, patience: int) -> None:
        self._patience = patience

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
        if len(losses) - 1 - losses.index(min(losses)) >= self._patience:
            control.should_training_stop = True
            control.should_save = True


class Checkpoints(TrainerCallback):
    """Seals every checkpoint, and keeps the one at which the cooldown begins as the arm's trunk."""

    def __init__(self, cooldown_start: int) -> None:
        self._cooldown_start = cooldown_start

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self._cooldown_start:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        seal(checkpoint)
        if state.global_step == self._cooldown_start:
            keep_trunk(checkpoint)

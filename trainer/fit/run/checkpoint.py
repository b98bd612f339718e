"""Which checkpoint a run begins from, and the one that longer runs of the same arm begin from.

A run's learning rate is constant until its cooldown. The checkpoint at that point, the trunk, holds
nothing of the run's length, so a longer run goes on from it exactly as if it had begun alone.
"""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from trainer.files import read_json, whole_directory, write_json

# The Trainer writes this file last (transformers `Trainer._save_checkpoint`), so a checkpoint that
# holds it is whole.
LAST_WRITTEN = "trainer_state.json"
TRUNK = "trunk"


def starting_point(run: Path, total: int, cooldown_start: int) -> Path | None:
    """The run's own newest whole checkpoint, else the arm's furthest trunk, else None: begin anew.

    total: the run's steps; from a checkpoint of the last one the Trainer would go a step too far.
    cooldown_start: the step after which the learning rate falls; trunks past it are of no use.
    """
    own = _newest(p for p in run.glob(f"checkpoint-*/{LAST_WRITTEN}") if _step(p) < total)
    if own:
        return own
    trunks = [p for p in run.parent.glob(f"*/{TRUNK}-*/{LAST_WRITTEN}") if _step(p) <= cooldown_start]
    return _newest(trunks)


def keep_trunk(checkpoint: Path) -> None:
    """Keep a checkpoint, by hard links, for longer runs of the arm; its run may delete its own."""
    with whole_directory(checkpoint.with_name(f"{TRUNK}-{checkpoint.name.rpartition('-')[2]}")) as scratch:
        shutil.copytree(checkpoint, scratch, copy_function=os.link, dirs_exist_ok=True)
        state = read_json(checkpoint / LAST_WRITTEN)
        state.update(best_metric=None, best_model_checkpoint=None, best_global_step=None)
        (scratch / LAST_WRITTEN).unlink()  # the link, or the checkpoint's own would change
        write_json(scratch / LAST_WRITTEN, state)


def remove_checkpoints(run: Path) -> None:
    """Of a finished run; its trunk stays."""
    for checkpoint in run.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


def remove_trunks(arm: Path) -> None:
    """Of an arm that will not be gone on with."""
    for trunk in arm.glob(f"*/{TRUNK}-*"):
        shutil.rmtree(trunk)


def _newest(files: Iterable[Path]) -> Path | None:
    whole = [p for p in files if p.stat().st_size > 0]
    return max(whole, key=_step).parent if whole else None


def _step(file: Path) -> int:
    return int(file.parent.name.rpartition("-")[2])

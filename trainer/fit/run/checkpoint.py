"""Checkpoints: which ones are whole, which one a run starts from, and the trunk that longer runs share.

A run's learning rate is constant until its cooldown. The checkpoint at that point, the trunk, holds
nothing of the run's length, so a longer run of the arm continues from it exactly as if it had run alone.

The Trainer writes a checkpoint file by file, and a kill or a power cut may leave any of them short. So
`seal` writes one more file, with the size of every other: a checkpoint without it, or with a file of
another size, does not count.
"""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from trainer.files import read_json, sync_files, whole_directory, write_json

SEAL = "files.json"
STATE = "trainer_state.json"
TRUNK = "trunk"


def seal(checkpoint: Path) -> None:
    """Record that a checkpoint is whole, once all its files are on the disk."""
    sizes = sync_files(checkpoint)
    write_json(checkpoint / SEAL, {str(file.relative_to(checkpoint)): size for file, size in sizes.items()})


def is_whole(checkpoint: Path) -> bool:
    """Return whether every file is there as it was when the checkpoint was sealed."""
    sizes = read_json(checkpoint / SEAL)
    return isinstance(sizes, dict) and all(
        (checkpoint / name).is_file() and (checkpoint / name).stat().st_size == size
        for name, size in sizes.items()
    )


def starting_point(run: Path, total: int, cooldown_start: int) -> Path | None:
    """Return the run's own newest whole checkpoint, else the arm's furthest trunk, else None.

    total: the run's steps; from a checkpoint of the last one the Trainer would go a step too far.
    cooldown_start: the step after which the learning rate falls; trunks past it are of no use.
    """
    own = _newest(path for path in run.glob("checkpoint-*") if step_of(path) < total)
    if own:
        return own
    return _newest(path for path in run.parent.glob(f"*/{TRUNK}-*") if step_of(path) <= cooldown_start)


def keep_trunk(checkpoint: Path) -> None:
    """Keep a checkpoint, by hard links, for longer runs of the arm; its run may delete its own."""
    with whole_directory(checkpoint.with_name(f"{TRUNK}-{step_of(checkpoint)}")) as scratch:
        shutil.copytree(checkpoint, scratch, copy_function=os.link, dirs_exist_ok=True)
        state = read_json(checkpoint / STATE)
        state.update(best_metric=None, best_model_checkpoint=None, best_global_step=None)
        for name in (STATE, SEAL):
            (scratch / name).unlink()  # the link, or the checkpoint's own would change
        write_json(scratch / STATE, state)
        seal(scratch)


def remove_checkpoints(run: Path) -> None:
    """Remove the checkpoints of a finished run; its trunk stays."""
    for checkpoint in run.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


def remove_trunks(arm: Path) -> None:
    """Remove the trunks of an arm that no longer run will continue."""
    for trunk in arm.glob(f"*/{TRUNK}-*"):
        shutil.rmtree(trunk)


def step_of(checkpoint: Path) -> int:
    """`checkpoint-40` → 40"""
    return int(checkpoint.name.rpartition("-")[2])


def _newest(checkpoints: Iterable[Path]) -> Path | None:
    return max(filter(is_whole, checkpoints), key=step_of, default=None)

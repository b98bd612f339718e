"""Run `python -m trainer` with the given arguments, and sleep for ever after its first checkpoint.

A test that kills a training process needs one that cannot finish first, however fast the machine is.
"""

import runpy
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from trainer.fit.run.callbacks import Checkpoints

seal_checkpoint = Checkpoints.on_save


def seal_and_sleep(self: Any, *arguments: Any, **named: Any) -> None:
    seal_checkpoint(self, *arguments, **named)
    signal.pause()


Checkpoints.on_save = seal_and_sleep  # type: ignore[method-assign]
runpy.run_module("trainer", run_name="__main__", alter_sys=True)

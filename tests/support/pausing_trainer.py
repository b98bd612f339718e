"""Run `python -m trainer` with the given arguments, and sleep for ever after its first checkpoint.

A test that kills a training process needs one that cannot finish first, however fast the machine is.
"""

import runpy
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from transformers import Trainer

save_checkpoint = Trainer._save_checkpoint


def save_and_sleep(self: Any, *arguments: Any, **named: Any) -> None:
    save_checkpoint(self, *arguments, **named)
    signal.pause()


Trainer._save_checkpoint = save_and_sleep
runpy.run_module("trainer", run_name="__main__", alter_sys=True)

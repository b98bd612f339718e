"""Stage `train`: one arm, from the prepared rows to an adapter and its validation losses.

Killed at any moment, it goes on from its last whole checkpoint and ends with the same adapter.
Writes `runs/<arm>/adapter/` and, last, `result.json`.
"""

import math
import resource
import time
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from transformers import TrainerCallback

from trainer.base_model import BaseModel, load_tokenizer
from trainer.config import RunConfig
from trainer.data.prepare import Prepared
from trainer.data.tokenize import ChatTokenizer
from trainer.device import choose_device
from trainer.errors import ArmError
from trainer.files import only_writer, write_json
from trainer.fit.arm import Arm, ArmResult, arm_directory, read_result
from trainer.fit.checkpoint import latest_checkpoint
from trainer.fit.loss import mean_loss, row_losses
from trainer.fit.trainer import build_trainer
from trainer.progress import say


def train(config: RunConfig, base: BaseModel, prepared: Prepared, arm: Arm, artifacts: Path) -> ArmResult:
    """Train one arm, or return it if it is finished. Raises: ArmError if the loss is not finite."""
    directory = arm_directory(config, base, prepared.fingerprint, arm, artifacts)
    with only_writer(directory):
        if read_result(directory, arm) is None:
            _train(config, base, prepared, arm, directory)
    result = read_result(directory, arm)
    assert result
    return result


def _train(config: RunConfig, base: BaseModel, prepared: Prepared, arm: Arm, directory: Path) -> None:
    tokenizer = load_tokenizer(base.directory)
    device = choose_device(config.train.device)
    engine = _engine(config.train.engine)
    trainer = build_trainer(
        engine.load(base.directory, config.train, config.lora, arm, device), engine.compute_loss,
        tokenizer, prepared.dataset("train"), config.train, arm, device, directory, _Progress(arm),
    )  # fmt: skip
    checkpoint = latest_checkpoint(directory)
    if checkpoint:
        say(f"  {arm.name}: goes on from {checkpoint.name}")
    begun = time.monotonic()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    train_s = time.monotonic() - begun
    pad_id = ChatTokenizer(tokenizer).pad_id
    model: Any = trainer.model
    losses = row_losses(model.get_base_model(), prepared.rows("validation"), pad_id)
    loss = mean_loss(losses)
    if not math.isfinite(loss):
        raise ArmError(f"{arm.name}: the validation loss is {loss}; lower the learning rate")
    model.save_pretrained(directory / "adapter")
    record = {
        "arm": {"rank": arm.rank, "learning_rate": arm.learning_rate, "seed": arm.seed},
        "steps": trainer.state.global_step,
        "train_seconds": round(train_s, 2),
        "resumed": checkpoint is not None,
        "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "train_loss": [[h["step"], h["loss"]] for h in trainer.state.log_history if "loss" in h],
        "validation": {"loss": loss, "rows": [[x.nll, x.tokens, x.exact] for x in losses]},
    }
    write_json(directory / "result.json", record)
    say(f"  {arm.name}: validation loss {loss:.4f} nats a token, {train_s:.0f} s of training")


def _engine(name: Literal["plain", "unsloth"]) -> ModuleType:
    if name == "unsloth":
        from trainer.fit.engines import unsloth

        return unsloth
    from trainer.fit.engines import plain

    return plain


class _Progress(TrainerCallback):
    """About ten lines a run, with the loss and the time that is left."""

    def __init__(self, arm: Arm) -> None:
        self._arm = arm
        self._begun: tuple[float, int] | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begun = self._begun or (time.monotonic(), state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        step, last = state.global_step, state.max_steps
        if not self._begun or "loss" not in (logs or {}):
            return
        if step % max(1, last // 10) == 0 or step == last:
            per_step = (time.monotonic() - self._begun[0]) / max(1, step - self._begun[1])
            say(
                f"  {self._arm.name}: step {step}/{last}, loss {float(logs['loss']):.3f}, "
                f"about {per_step * (last - step):.0f} s left"
            )

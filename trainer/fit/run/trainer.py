"""Train one arm with TRL's `SFTTrainer`, which batches, steps, saves and resumes for every engine.

The rows arrive tokenised, labelled and packed, and objective and engine compute the losses, so TRL prepares
nothing.
"""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import RandomSampler
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback, TrainerControl
from trl import SFTConfig, SFTTrainer

from trainer.config import TrainConfig
from trainer.data.tokenize import IGNORED, TokenRow
from trainer.engines import Engine
from trainer.errors import ConfigError
from trainer.fit.arm import Arm
from trainer.fit.run.parts import Parts
from trainer.fit.run.world import World
from trainer.objective import Objective
from trainer.objective.forward import batches
from trainer.objective.score import RowScore, mean_score


class ArmTrainer(SFTTrainer):
    """Trains one arm.

    validation: the rows whose score judges it. rows_per_step: packed rows, over all processes of
    `world`. sharded: whether the base is sharded over them.
    """

    control: TrainerControl

    def __init__(
        self,
        *,
        objective: Objective,
        engine: Engine,
        validation: Sequence[TokenRow],
        rows_per_step: int,
        world: World,
        sharded: bool,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self.objective = objective
        self._engine = engine
        self._validation = validation
        self._rows_per_step = rows_per_step
        self._world = world
        self._sharded = sharded
        if sharded:
            # Otherwise accelerate would wrap it in DDP, which refuses shards; `training_step` averages.
            self.accelerator.prepare_model(self.model, evaluation_mode=True)
        config = cast(Any, self.model).config.get_text_config()
        if hasattr(config, "output_router_logits"):  # TRL turns it on for a loss that ours does not have
            config.output_router_logits = False
        self._since_log = (time.monotonic(), 0)
        rows: Any = self.train_dataset
        self._parts = Parts() if "top_ids" in rows.column_names else None
        trained = [name for name, p in self.model.named_parameters() if p.requires_grad]
        self._trains_whole = not all("lora_" in name for name in trained)
        # TRL casts a 4-bit model's adapter to bf16, which loses small updates and which float16's scaler
        # refuses. Every engine trains it in fp32.
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()

    def training_step(self, *arguments: Any, **named: Any) -> torch.Tensor:
        """Run one packed row forward and back; after a step's last row average the shards' gradients."""
        loss = super().training_step(*arguments, **named)
        if self._sharded and self.accelerator.sync_gradients:
            self._world.average([p.grad for p in self.model.parameters() if p.grad is not None])
        return torch.as_tensor(loss)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        """Return one packed row's part of the step's loss, as the objective has it; inputs are (1, length).

        It is multiplied by the number of processes: gradients and logged losses are averaged over them, and
        a step's loss is the sum.
        """
        begun, tokens = self._since_log
        self._since_log = begun, tokens + inputs["labels"].numel()
        if num_items_in_batch is None:
            num_items_in_batch = (inputs["labels"] != IGNORED).sum()
        loss = self.objective.loss(self._engine, model, inputs, num_items_in_batch)
        if self._parts:
            self._parts.add(inputs, loss * num_items_in_batch)
        return torch.as_tensor(loss * self._world.size)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> RandomSampler:
        """Drop the last incomplete step of each epoch. The order differs by epoch, so other rows each time.

        accelerate seeds the order by `data_seed` and epoch and deals the rows out one by one, so a step
        has the same rows whatever the number of processes.
        """
        rows: Any = self.train_dataset
        return RandomSampler(rows, num_samples=len(rows) // self._rows_per_step * self._rows_per_step)

    def _save_rng_state(self, output_dir: str) -> None:
        """Write this process's state, and wait for the others: a checkpoint is sealed after all of them."""
        super()._save_rng_state(output_dir)
        self._world.wait()

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0: nothing reads it, and the Trainer would walk all modules for it at every step."""
        return 0

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Report the validation score as `eval_loss`, less is better, for choosing the best checkpoint."""
        metrics = {"eval_loss": self.objective.SCORE.sign * mean_score(self.validation_scores())}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def validation_scores(self) -> list[RowScore]:
        """Score every validation row under the model as it is now; each process scores a part."""
        model: Any = self.model
        tokenizer: Any = self.processing_class
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        pad_id = tokenizer.pad_token_id or 0
        part = self._world.share(self._validation)
        passes = len(batches(part))
        most = max(self._world.joined([passes]))
        # Whole weights are in fp32, and the frozen layers may not be.
        with self.accelerator.autocast() if self._trains_whole else contextlib.nullcontext():
            scores = self.objective.scores(base, part, pad_id)
            for _ in range(most - passes):  # others may still need this process's part of the base
                self.objective.scores(base, self._validation[:1], pad_id)
        return self._world.joined(scores)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            now = time.monotonic()
            begun, tokens = self._since_log
            logs["tokens_per_second"] = round(tokens * self._world.size / (now - begun), 1)
            self._since_log = now, 0
            if self._parts:
                logs.update(self._parts.means(self._world))
        super().log(logs, start_time)


def build_trainer(
    model: Any,
    objective: Objective,
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    validation: Sequence[TokenRow],
    settings: TrainConfig,
    arm: Arm,
    steps: int | None,
    device: str,
    output: Path,
    callbacks: Sequence[TrainerCallback],
    world: World,
    together: bool = True,
) -> ArmTrainer:
    """Return a trainer for one arm, ready to train or resume.

    model: from the engine. rows: `input_ids` and `labels`. steps: None for `settings.epochs`. together:
    whether rows may share a sequence; if not, a step has about as many tokens in more sequences.
    Raises: ConfigError if the rows do not make one step.
    """
    packed = objective.pack(rows, settings.row_tokens, together)
    rows_per_step = settings.rows_per_step
    if not together:
        mean = max(1, sum(map(sum, packed["seq_lengths"])) // len(packed))
        rows_per_step *= max(1, min(settings.row_tokens // mean, len(packed) // rows_per_step))
    steps_an_epoch = len(packed) // rows_per_step
    if not steps_an_epoch:
        raise ConfigError(
            f"train.rows_per_step is {settings.rows_per_step}, and the data makes only {len(packed)} "
            f"{'packed rows' if together else 'rows'} of {settings.row_tokens} tokens, where a step takes "
            f"{rows_per_step}: lower it, or train.tokens_per_step"
        )
    total = steps or max(1, round(settings.epochs * steps_an_epoch))
    trainer = ArmTrainer(
        objective=objective,
        engine=engine,
        validation=validation,
        rows_per_step=rows_per_step,
        world=world,
        sharded=settings.shard_base,
        model=model,
        args=_arguments(settings, arm, total, rows_per_step, device, output, world),
        train_dataset=packed,
        # The Trainer asks for one where there is something to restore; `evaluate` uses `validation`.
        eval_dataset=packed.select(range(1)) if settings.restore_best else None,
        data_collator=objective.collate,
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)  # `callbacks` show the progress
    return trainer


def cooldown_steps(settings: TrainConfig, total: int) -> int:
    """Return the number of steps at the end of a run of `total` in which the learning rate falls."""
    return max(1, round(settings.cooldown_share * total))


def _arguments(
    settings: TrainConfig,
    arm: Arm,
    total: int,
    rows_per_step: int,
    device: str,
    output: Path,
    world: World,
) -> SFTConfig:
    """Set everything that decides the result: on a GPU Unsloth changes the defaults of SFTConfig."""
    cooldown = cooldown_steps(settings, total)
    return SFTConfig(
        output_dir=str(output),
        run_name=output.parent.name,
        use_cpu=device == "cpu",
        bf16=settings.dtype == "bfloat16" and device == "cuda",
        fp16=settings.dtype == "float16" and device == "cuda",
        max_length=settings.row_tokens,
        dataset_kwargs={"skip_prepare_dataset": True},
        # On a GPU a worker reads and collates the next rows during a step; a CPU has no core to spare.
        dataloader_num_workers=1 if device == "cuda" else 0,
        # On a GPU a blocking copy would wait for the previous step.
        accelerator_config={"non_blocking": device == "cuda"},
        remove_unused_columns=False,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=rows_per_step // world.size,
        average_tokens_across_devices=True,
        ddp_find_unused_parameters=False,
        max_steps=total,
        optim=settings.optimizer,
        learning_rate=arm.setting.learning_rate,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": cooldown, "decay_type": "linear"},
        warmup_steps=min(settings.warmup_steps, total - cooldown),
        weight_decay=settings.weight_decay,
        adam_beta1=settings.adam_betas[0],
        adam_beta2=settings.adam_betas[1],
        max_grad_norm=settings.max_grad_norm,
        seed=arm.seed,
        data_seed=arm.seed,
        gradient_checkpointing=settings.gradient_checkpointing,
        save_strategy="steps",
        save_steps=settings.save_every_steps,
        save_total_limit=2,
        eval_strategy="steps" if settings.restore_best else "no",
        eval_steps=settings.save_every_steps,
        load_best_model_at_end=settings.restore_best,
        logging_steps=settings.logging_steps,
        logging_nan_inf_filter=False,  # the filter would hide a divergence
        report_to=list(settings.trackers),
        disable_tqdm=True,
    )

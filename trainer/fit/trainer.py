"""TRL's `SFTTrainer`, made to train on target positions and to judge by our own loss.

Rows come tokenised and labelled, so TRL only packs and batches them. Packed rows keep their own
positions and carry no attention mask, which is what keeps them from seeing each other.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch.nn import functional
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback, TrainerControl
from trl import SFTConfig, SFTTrainer

from trainer.config import TrainConfig
from trainer.data.tokenize import IGNORED, TokenRow
from trainer.fit.loss import RowLoss, mean_loss, row_losses


class LoraTrainer(SFTTrainer):
    """Trains one adapter; the LM head runs on target positions only, as most of a prompt needs no logits.

    validation: rows of the validation split.
    """

    control: TrainerControl

    def __init__(self, *, validation: Sequence[TokenRow], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._validation = validation
        self._since_log = (time.monotonic(), 0)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Mean NLL over the target tokens of one packed row; inputs are (1, length)."""
        labels = inputs.pop("labels")[0, 1:]
        begun, tokens = self._since_log
        self._since_log = begun, tokens + len(labels) + 1
        kept = (labels != IGNORED).nonzero()[:, 0]
        outputs = model(**inputs, logits_to_keep=kept, use_cache=False)
        total = functional.cross_entropy(outputs.logits[0].float(), labels[kept], reduction="sum")
        loss = total / (len(kept) if num_items_in_batch is None else num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Token-weighted validation loss as `eval_loss`, for choosing the best checkpoint."""
        metrics = {"eval_loss": mean_loss(self.validation_losses())}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def validation_losses(self) -> list[RowLoss]:
        """Of every validation row, under the adapter as it is now."""
        model: Any = self.model
        tokenizer: Any = self.processing_class
        losses: list[RowLoss] = row_losses(
            model.get_base_model(), self._validation, tokenizer.pad_token_id or 0
        )
        return losses

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            now = time.monotonic()
            begun, tokens = self._since_log
            logs["tokens_per_second"] = round(tokens / (now - begun), 1)
            self._since_log = now, 0
        super().log(logs, start_time)


def build_trainer(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    validation: Sequence[TokenRow],
    settings: TrainConfig,
    learning_rate: float,
    seed: int,
    steps: int | None,
    device: str,
    output: Path,
    callbacks: Sequence[TrainerCallback],
) -> LoraTrainer:
    """A trainer ready to train or resume. rows: `input_ids` and `labels`. steps: None for `epochs`."""
    dataset = rows.select_columns(["input_ids", "labels"])
    trainer = LoraTrainer(
        validation=validation,
        model=model,
        args=_arguments(settings, learning_rate, seed, device, output),
        train_dataset=dataset,
        # The Trainer asks for one where there is something to restore; `evaluate` uses `validation`.
        eval_dataset=dataset.select(range(1)) if settings.restore_best else None,
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)  # `callbacks` tell the progress
    total = steps or max(1, round(settings.epochs * len(trainer.train_dataset)))
    cooldown = cooldown_steps(settings, total)
    trainer.args.max_steps = total
    trainer.args.warmup_steps = min(settings.warmup_steps, total - cooldown)
    trainer.args.lr_scheduler_kwargs = {"num_decay_steps": cooldown, "decay_type": "linear"}
    return trainer


def cooldown_steps(settings: TrainConfig, total: int) -> int:
    """Steps at the end of a run of `total` in which the learning rate falls."""
    return max(1, round(settings.cooldown_share * total))


def _arguments(
    settings: TrainConfig, learning_rate: float, seed: int, device: str, output: Path
) -> SFTConfig:
    return SFTConfig(
        output_dir=str(output),
        use_cpu=device == "cpu",
        bf16=settings.dtype == "bfloat16" and device != "cpu",
        packing=True,
        packing_strategy="bfd",
        eval_packing=False,
        max_length=settings.tokens_per_step,
        per_device_train_batch_size=1,
        learning_rate=learning_rate,
        lr_scheduler_type="warmup_stable_decay",
        weight_decay=settings.weight_decay,
        seed=seed,
        data_seed=seed,
        gradient_checkpointing=settings.gradient_checkpointing,
        save_strategy="steps",
        save_steps=settings.save_every_steps,
        save_total_limit=2,
        eval_strategy="steps" if settings.restore_best else "no",
        eval_steps=settings.save_every_steps,
        load_best_model_at_end=settings.restore_best,
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would hide a divergence
        report_to=list(settings.trackers),
        run_name=output.parent.name,
        disable_tqdm=True,
    )

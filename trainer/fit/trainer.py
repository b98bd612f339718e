"""TRL's `SFTTrainer` for one arm: it batches, steps, saves and resumes, whatever the engine.

Rows come tokenised, labelled and packed, and the loss is the engine's, so TRL prepares nothing.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from trainer.config import TrainConfig
from trainer.data.tokenize import IGNORED
from trainer.fit.arm import Arm
from trainer.fit.packing import collate, pack

Loss = Callable[[Any, dict[str, Any], Any], Any]


class ArmTrainer(SFTTrainer):
    """SFTTrainer with the engine's loss. loss: (model, inputs with labels, target tokens) to a scalar."""

    def __init__(self, loss: Loss, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._loss = loss
        # TRL turns a 4-bit model's adapter to bf16: small updates would be lost, and the scaler of
        # float16 refuses it. Both engines train it in fp32.
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        """Mean NLL over the target tokens of one packed row; inputs are (1, length)."""
        if num_items_in_batch is None:
            num_items_in_batch = (inputs["labels"] != IGNORED).sum()
        return torch.as_tensor(self._loss(model, inputs, num_items_in_batch))


def build_trainer(
    model: Any,
    loss: Loss,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    settings: TrainConfig,
    arm: Arm,
    device: str,
    output: Path,
    callback: TrainerCallback,
) -> ArmTrainer:
    """A trainer for one arm, ready to train or resume.

    model, loss: from the engine. rows: `input_ids` and `labels`.
    """
    trainer = ArmTrainer(
        loss,
        model=model,
        args=_arguments(settings, arm, device, output),
        train_dataset=pack(rows, settings.tokens_per_step),
        data_collator=collate,
        processing_class=tokenizer,
        callbacks=[callback],
    )
    trainer.remove_callback(PrinterCallback)  # `callback` tells the progress
    return trainer


def _arguments(settings: TrainConfig, arm: Arm, device: str, output: Path) -> SFTConfig:
    return SFTConfig(
        output_dir=str(output),
        use_cpu=device == "cpu",
        bf16=settings.dtype == "bfloat16" and device == "cuda",
        fp16=settings.dtype == "float16" and device == "cuda",
        max_length=settings.tokens_per_step,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        per_device_train_batch_size=1,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        optim=settings.optimizer,
        learning_rate=arm.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=settings.warmup_share,
        weight_decay=settings.weight_decay,
        seed=arm.seed,
        data_seed=arm.seed,
        gradient_checkpointing=settings.gradient_checkpointing,
        save_strategy="steps",
        save_steps=settings.save_every_steps,
        save_total_limit=2,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
    )

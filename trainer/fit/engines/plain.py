"""The plain engine: transformers, PEFT and TRL's `SFTTrainer` as they come, on CPU or CUDA.

Rows come tokenised and labelled, so TRL only packs and batches them. Packed rows keep their own
positions and carry no attention mask, which is what keeps them from seeing each other.
"""

from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from torch.nn import functional
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from trainer.base_model import load_model
from trainer.config import LoraConfig as LoraSettings
from trainer.config import TrainConfig
from trainer.data.tokenize import IGNORED
from trainer.fit.arm import Arm


class TargetOnlyTrainer(SFTTrainer):
    """SFTTrainer whose LM head runs on target positions only: most of a prompt needs no logits."""

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Mean NLL over the target tokens of one packed row; inputs are (1, length)."""
        labels = inputs.pop("labels")[0, 1:]
        kept = (labels != IGNORED).nonzero()[:, 0]
        outputs = model(**inputs, logits_to_keep=kept, use_cache=False)
        total = functional.cross_entropy(outputs.logits[0].float(), labels[kept], reduction="sum")
        loss = total / (len(kept) if num_items_in_batch is None else num_items_in_batch)
        return (loss, outputs) if return_outputs else loss


def build_trainer(
    base: Path,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    settings: TrainConfig,
    lora: LoraSettings,
    arm: Arm,
    device: str,
    output: Path,
    callback: TrainerCallback,
) -> TargetOnlyTrainer:
    """A trainer for one arm, ready to train or resume. rows: `input_ids` and `labels`."""
    model = load_model(base, settings.dtype, device)
    model.config.use_cache = False  # with a cache, packed rows would silently attend to each other
    trainer = TargetOnlyTrainer(
        model=model,
        args=_arguments(settings, arm, device, output),
        train_dataset=rows.select_columns(["input_ids", "labels"]),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            task_type="CAUSAL_LM",
            r=arm.rank,
            lora_alpha=lora.scaling * arm.rank,
            lora_dropout=lora.dropout,
            target_modules=list(lora.target_modules),
            bias="none",
        ),
        callbacks=[callback],
    )
    trainer.remove_callback(PrinterCallback)  # `callback` tells the progress
    return trainer


def _arguments(settings: TrainConfig, arm: Arm, device: str, output: Path) -> SFTConfig:
    return SFTConfig(
        output_dir=str(output),
        use_cpu=device == "cpu",
        bf16=settings.dtype == "bfloat16" and device == "cuda",
        packing=True,
        packing_strategy="bfd",
        max_length=settings.tokens_per_step,
        per_device_train_batch_size=1,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
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

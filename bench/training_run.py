"""Train with one engine or peer and print its figures: bench/training.py starts this for each path.

    python bench/training_run.py compiled-bf16
    python bench/training_run.py compiled-bf16 qwen3-4b

The last line of output is `RESULT` and a JSON object. The model has random weights of the shape; without one
on a CPU it is the real 135M model with the quickstart's rows.
"""

import importlib
import itertools
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STARTED = time.monotonic()
ROOT = Path(__file__).resolve().parent.parent
WORK = Path(os.environ.get("BENCH_WORK", Path(tempfile.gettempdir()) / "finechat-bench-training"))
WARM_UP, MEASURED = {"cuda": 4, "cpu": 3}, {"cuda": 12, "cpu": 12}
LOGGED = 4  # steps between logs; each log waits for the GPU
LENGTH = {"cuda": int(os.environ.get("BENCH_LENGTH", "16384")), "cpu": 256}
ROWS = 4000  # 120 packed rows, of which only the last is short
RANK, RATE, SEED = 32, 2e-4, 1
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PEAK_FLOPS = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12}  # dense bf16, from NVIDIA's data sheets
# The classes of transformers and what config.json says; `tiny` is for a test on a CPU.
TOKENS = {"tie_word_embeddings": True, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-3b": (
        "Llama",
        {
            "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
            "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128_256,
            "max_position_embeddings": 131_072, **TOKENS,
        },
    ),
    "qwen3-4b": (
        "Qwen3",
        {
            "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936,
            "max_position_embeddings": 40_960, **TOKENS,
        },
    ),
    "tiny": (
        "Qwen3",
        {
            "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 2000, "max_position_embeddings": 2048,
            **TOKENS,
        },
    ),
}  # fmt: skip


def measure(path: str, shape: str) -> dict[str, Any]:
    """Train WARM_UP + MEASURED steps in this process. shape: empty for what the device trains by default."""
    device = device_here()
    engine, _, precision = path.partition("-")
    if engine == "unsloth":  # must be imported before transformers
        import unsloth  # noqa: F401

    steps = WARM_UP[device] + MEASURED[device]
    ends: list[Any] = []
    first_step: list[float] = []
    base, rows = _base_and_rows(device, shape)
    make = _peer if engine in ("trl", "unsloth") else _ours
    trainer = make(engine, precision, base, rows, device, steps, _clock(ends, first_step, device))
    tokens = _count_tokens(trainer)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    spans = [_seconds(*pair) for pair in itertools.pairwise(ends)][WARM_UP[device] - 1 :]
    a_step = len(tokens) // steps
    measured = tokens[WARM_UP[device] * a_step :]
    rate = sum(measured) / sum(spans)
    return {
        "tokens_per_s": round(rate, 1),
        "peak_share": _peak_share(trainer.model, rate, device),
        "memory_gib": _memory_gib(device),
        "first_step_s": round(first_step[0], 1),
        "loss": losses[-1],
        "first_loss": losses[0],
        "step_s_median": round(statistics.median(spans), 4),
        "step_s_p95": round(sorted(spans)[int(0.95 * (len(spans) - 1))], 4),
        "tokens_a_step": round(statistics.mean(measured) * a_step, 1),
    }


def _clock(ends: list[Any], first_step: list[float], device: str) -> Any:
    """Return a callback that notes the end of every step, and after how many seconds the first one ended."""
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_step_end(self, *arguments: Any, **more: Any) -> None:
            ends.append(_moment(device))
            if not first_step:
                _seconds(ends[0], ends[0])  # waits for the GPU
                first_step.append(time.monotonic() - STARTED)
            if len(ends) == WARM_UP[device] and device == "cuda":
                torch.cuda.reset_peak_memory_stats()

    return Clock()


def _count_tokens(trainer: Any) -> list[int]:
    """Return a list that gets the number of tokens of each of the trainer's steps."""
    tokens: list[int] = []
    real_step = trainer.training_step

    def counted(model: Any, inputs: dict[str, Any], *arguments: Any, **more: Any) -> Any:
        tokens.append(int(inputs["input_ids"].numel()))
        return real_step(model, inputs, *arguments, **more)

    trainer.training_step = counted
    return tokens


def _peak_share(model: Any, rate: float, device: str) -> float | None:
    """Return the share of the card's peak at this rate: 4 operations for each frozen parameter and token."""
    import torch

    peak = PEAK_FLOPS.get(torch.cuda.get_device_name()) if device == "cuda" else None
    parameters = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    return round(4 * parameters * rate / peak, 4) if peak else None


def _ours(engine: str, precision: str, base: Path, rows: Any, device: str, steps: int, clock: Any) -> Any:
    sys.path.insert(0, str(ROOT))
    from trainer.base_model import load_tokenizer
    from trainer.config import TrainConfig
    from trainer.config_lora import LoraConfig
    from trainer.fit.arm import Arm, Setting
    from trainer.fit.run.trainer import build_trainer
    from trainer.fit.run.world import World
    from trainer.objective import sft

    settings = TrainConfig(
        engine=engine,
        device=device,
        dtype="float32" if precision == "fp32" else "bfloat16",
        quantization="fp8" if precision == "fp8" else "none",
        tokens_per_step=LENGTH[device], max_steps=steps, warmup_steps=0, save_every_steps=10_000,
        logging_steps=LOGGED,
        # It recomputes only what does not fit: nothing of the 3B shape on 80 GB.
        gradient_checkpointing=engine == "compiled" and device == "cuda",
    )  # fmt: skip
    arm = Arm(Setting(RANK, RATE), SEED)
    module = importlib.import_module(f"trainer.engines.{engine}")
    model = module.load(
        base, settings, LoraConfig(alpha=RANK, target_modules=tuple(TARGETS)), RANK, SEED, device
    )
    return build_trainer(
        model, sft, module, load_tokenizer(base), rows, [], settings, arm, steps, device,
        Path(tempfile.mkdtemp(dir=WORK)), [clock], World(device),
    )  # fmt: skip


def _peer(engine: str, variant: str, base: Path, rows: Any, device: str, steps: int, clock: Any) -> Any:
    """Train with SFTTrainer and its own packing, collator and loss."""
    import torch

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    if engine == "unsloth":
        from unsloth import FastLanguageModel

        model, tokenizer = FastLanguageModel.from_pretrained(
            str(base), max_seq_length=LENGTH[device], dtype=dtype, load_in_4bit=False, local_files_only=True
        )
        model = FastLanguageModel.get_peft_model(
            model, r=RANK, lora_alpha=RANK, lora_dropout=0, bias="none", target_modules=TARGETS,
            use_gradient_checkpointing=False if variant == "kept" else "unsloth", random_state=SEED,
        )  # fmt: skip
        lora = None
    else:
        from peft import LoraConfig
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, local_files_only=True).to(device)
        tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
        lora = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS, task_type="CAUSAL_LM")
    from trl import SFTConfig, SFTTrainer

    return SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=tempfile.mkdtemp(dir=WORK), max_length=LENGTH[device], packing=True,
            packing_strategy="bfd", per_device_train_batch_size=1, gradient_accumulation_steps=1,
            max_steps=steps, learning_rate=RATE, warmup_steps=0,
            lr_scheduler_type="warmup_stable_decay",  # as in ours, so that losses are comparable
            lr_scheduler_kwargs={"num_decay_steps": round(0.2 * steps), "decay_type": "linear"},
            optim="adamw_torch_fused", weight_decay=0.0, bf16=device == "cuda", use_cpu=device == "cpu",
            gradient_checkpointing=device == "cuda" and engine == "trl", save_strategy="no",
            logging_steps=LOGGED, report_to=[], seed=SEED, disable_tqdm=True,
        ),
        train_dataset=rows, processing_class=tokenizer, peft_config=lora, callbacks=[clock],
    )  # fmt: skip


def _base_and_rows(device: str, shape: str) -> tuple[Path, Any]:
    """Return the real 135M model and the quickstart's rows, or a random model and random rows."""
    if device == "cpu" and not shape:
        base, rows = _quickstart()
        return base, rows.select_columns(["input_ids", "labels"])
    name, config = SHAPES[shape or "llama-3b"]
    return _random_base(device, shape or "llama-3b", name, config), _random_rows(device, config["vocab_size"])


def _random_base(device: str, shape: str, name: str, config: dict[str, Any]) -> Path:
    """Return random weights of a shape, made once."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models

    path = WORK / shape
    if (path / "tokenizer_config.json").is_file():
        return path
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**config))
        model.save_pretrained(path)
    del model
    torch.set_default_dtype(torch.float32)
    words = {f"w{i}": i for i in range(config["vocab_size"])}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), unk_token="w0",
        pad_token="w0", bos_token="w1", eos_token="w2",
    ).save_pretrained(path)  # fmt: skip
    if device == "cuda":
        torch.cuda.empty_cache()
    return path


def _random_rows(device: str, words: int) -> Any:
    """Return rows of random tokens, of log-normal length, that fit twice into a step."""
    from datasets import Dataset

    rng = random.Random(0)
    rows = []
    for _ in range(ROWS):
        count = min(2048, LENGTH[device] // 2, max(32, int(rng.lognormvariate(6.0, 0.75))))
        ids = [rng.randrange(min(1000, words // 2), min(120_000, words)) for _ in range(count)]
        asked = int(count * rng.uniform(0.1, 0.5))
        rows.append({"input_ids": ids, "labels": [-100] * asked + ids[asked:]})
    return Dataset.from_list(rows)


def _quickstart() -> tuple[Path, Any]:
    sys.path.insert(0, str(ROOT))
    from trainer import base_model
    from trainer.config_data import CONFIGS
    from trainer.config_file import load
    from trainer.data.prepare import prepare

    config = load(CONFIGS / "quickstart.yaml")
    base = base_model.fetch(config.base, WORK)
    return base.directory, prepare(config, base, WORK).dataset("train")


def _moment(device: str) -> Any:
    """Return the time now, or on a GPU an event in its queue, which nobody waits for."""
    import torch

    if device == "cpu":
        return time.monotonic()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds(begun: Any, ended: Any) -> float:
    if isinstance(begun, float):
        return float(ended - begun)
    ended.synchronize()
    return float(begun.elapsed_time(ended)) / 1000


def _memory_gib(device: str) -> float:
    import resource

    import torch

    if device == "cuda":
        return float(round(torch.cuda.max_memory_allocated() / 2**30, 2))
    return float(round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2))


def device_here() -> str:
    """Return `cuda` or `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    print("RESULT " + json.dumps(measure(sys.argv[1], (sys.argv[2:] or [""])[0])), flush=True)

"""Compare the engines' training speed with that of the peers installed here: tokens a second, memory, loss.

    python bench/training.py                          # every path that can run here; writes bench/results
    python bench/training.py --paths trl compiled-fp32 --repeats 5
    python bench/training.py --paths trl --repeats 1 --add       # keep the results of other paths

On a GPU it trains a random-weight model of the Llama-3.2-3B shape in bfloat16 with rank 32, on rows of
log-normal length (mean about 500 tokens, at most 2,048) packed to 16,384 a step. Without one it trains the
real 135M model in fp32 on the quickstart's rows, packed to 256 a step. Each path is a separate process, the
paths take turns, and only the rows' own tokens count, not padding. `trl` and `unsloth` are SFTTrainer with
packing, as their users call it; `unsloth-kept` has no gradient checkpointing. The others are this project's
engines.
"""

import argparse
import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STARTED = time.monotonic()
ROOT = Path(__file__).resolve().parent.parent
WORK = Path(os.environ.get("BENCH_WORK", Path(tempfile.gettempdir()) / "finechat-bench-training"))
PATHS = {
    "cuda": ("trl", "unsloth", "unsloth-kept", "plain-bf16", "compiled-bf16", "compiled-fp8"),
    "cpu": ("trl", "plain-fp32", "compiled-fp32"),
}
WARM_UP, MEASURED = {"cuda": 4, "cpu": 3}, {"cuda": 12, "cpu": 12}
LOGGED = 4  # steps between logs; each log waits for the GPU
LENGTH = {"cuda": int(os.environ.get("BENCH_LENGTH", "16384")), "cpu": 256}
ROWS = 4000  # 120 packed rows, of which only the last is short
RANK, RATE, SEED = 32, 2e-4, 1
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PEAK_FLOPS = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12}  # dense bf16, from NVIDIA's data sheets
LLAMA_3B = {
    "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128_256,
}  # fmt: skip
PACKAGES = ("torch", "transformers", "trl", "peft", "unsloth", "bitsandbytes", "triton")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--paths", nargs="+")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--add", action="store_true", help="keep the rows of other paths in the file")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print("RESULT " + json.dumps(measure(options.one)), flush=True)
        return
    device = _device()
    paths = options.paths or [
        path for path in PATHS[device] if "unsloth" not in path or importlib.util.find_spec("unsloth")
    ]
    WORK.mkdir(parents=True, exist_ok=True)
    rows = [row for row in _kept(device) if row["path"] not in paths] if options.add else []
    for repeat in range(options.repeats):
        for path in paths:
            row = {"path": path, "repeat": repeat, **_run(path)}
            rows.append(row)
            print({k: v for k, v in row.items() if k != "step_seconds"}, flush=True)
            _write(device, rows)
    print(table(rows))


def measure(path: str) -> dict[str, Any]:
    """Train WARM_UP + MEASURED steps in this process."""
    device = _device()
    engine, _, precision = path.partition("-")
    if engine == "unsloth":  # must be set before transformers is imported
        import unsloth  # noqa: F401
    import torch
    from transformers import TrainerCallback

    steps = WARM_UP[device] + MEASURED[device]
    ends: list[Any] = []
    first_step: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *arguments: Any, **more: Any) -> None:
            ends.append(_moment(device))
            if not first_step:
                _seconds(ends[0], ends[0])  # waits for the GPU
                first_step.append(time.monotonic() - STARTED)
            if len(ends) == WARM_UP[device] and device == "cuda":
                torch.cuda.reset_peak_memory_stats()

    base, rows = _base(device), _rows(device)
    make = _peer if engine in ("trl", "unsloth") else _ours
    trainer = make(engine, precision, base, rows, device, steps, Clock())
    tokens: list[int] = []
    real_step = trainer.training_step

    def counted(model: Any, inputs: dict[str, Any], *arguments: Any, **more: Any) -> Any:
        tokens.append(int(inputs["input_ids"].numel()))
        return real_step(model, inputs, *arguments, **more)

    trainer.training_step = counted
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    spans = [_seconds(*pair) for pair in itertools.pairwise(ends)][WARM_UP[device] - 1 :]
    a_step = len(tokens) // steps
    measured = tokens[WARM_UP[device] * a_step :]
    rate = sum(measured) / sum(spans)
    peak = PEAK_FLOPS.get(torch.cuda.get_device_name()) if device == "cuda" else None
    parameters = sum(p.numel() for p in trainer.model.parameters() if not p.requires_grad)
    return {
        "tokens_per_s": round(rate, 1),
        "peak_share": round(4 * parameters * rate / peak, 4) if peak else None,
        "memory_gib": _memory_gib(device),
        "first_step_s": round(first_step[0], 1),
        "loss": losses[-1],
        "first_loss": losses[0],
        "step_s_median": round(statistics.median(spans), 4),
        "step_s_p95": round(sorted(spans)[int(0.95 * (len(spans) - 1))], 4),
        "tokens_a_step": round(statistics.mean(measured) * a_step, 1),
    }


def _ours(engine: str, precision: str, base: Path, rows: Any, device: str, steps: int, clock: Any) -> Any:
    sys.path.insert(0, str(ROOT))
    import importlib

    from trainer.base_model import load_tokenizer
    from trainer.config import LoraConfig, TrainConfig
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


def _base(device: str) -> Path:
    """Return the real 135M model, or random weights of the 3B shape, made once."""
    if device == "cpu":
        return _quickstart()[0]
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    path = WORK / "llama-3b"
    if (path / "tokenizer_config.json").is_file():
        return path
    torch.manual_seed(0)
    config = LlamaConfig(
        **LLAMA_3B, max_position_embeddings=131_072, tie_word_embeddings=True, pad_token_id=0,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        LlamaForCausalLM(config).save_pretrained(path)
    torch.set_default_dtype(torch.float32)
    words = {f"w{i}": i for i in range(LLAMA_3B["vocab_size"])}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), unk_token="w0",
        pad_token="w0", bos_token="w1", eos_token="w2",
    ).save_pretrained(path)  # fmt: skip
    torch.cuda.empty_cache()
    return path


def _rows(device: str) -> Any:
    from datasets import Dataset

    if device == "cpu":
        return _quickstart()[1].select_columns(["input_ids", "labels"])
    rng = random.Random(0)
    rows = []
    for _ in range(ROWS):
        count = min(2048, max(32, int(rng.lognormvariate(6.0, 0.75))))
        ids = [rng.randrange(1000, 120_000) for _ in range(count)]
        asked = int(count * rng.uniform(0.1, 0.5))
        rows.append({"input_ids": ids, "labels": [-100] * asked + ids[asked:]})
    return Dataset.from_list(rows)


def _quickstart() -> tuple[Path, Any]:
    sys.path.insert(0, str(ROOT))
    from trainer import base_model
    from trainer.config import CONFIGS
    from trainer.config_file import load
    from trainer.data.prepare import prepare

    config = load(CONFIGS / "quickstart.yaml")
    base = base_model.fetch(config.base, WORK)
    return base.directory, prepare(config, base, WORK).dataset("train")


def _run(path: str) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).resolve()), "--one", path]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, cwd=WORK, env=environment)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            result: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
            return result
    return {"failed": (done.stdout + done.stderr).strip()[-500:]}


def table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table of medians over repeats."""
    lines = [
        "| path | tokens/s | share of peak | memory, GiB | first step, s | loss |",
        "|---|---|---|---|---|---|",
    ]
    for path in dict.fromkeys(row["path"] for row in rows):
        own = [row for row in rows if row["path"] == path and "failed" not in row]
        if not own:
            lines.append(f"| {path} | failed | | | | |")
            continue
        middle = {
            key: statistics.median(row[key] for row in own) if own[0][key] is not None else None
            for key in ("tokens_per_s", "peak_share", "memory_gib", "first_step_s", "loss")
        }
        share = f"{middle['peak_share']:.1%}" if middle["peak_share"] else "–"
        lines.append(
            f"| {path} | {middle['tokens_per_s']:,.0f} | {share} | {middle['memory_gib']:.1f} | "
            f"{middle['first_step_s']:.0f} | {middle['loss']:.4f} |"
        )
    return "\n".join(lines)


def _result_file(device: str) -> tuple[str, Path]:
    """The card's name, and where its figures are kept."""
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    card = name.removeprefix("NVIDIA ").split()[0].lower()
    return name, ROOT / "bench" / "results" / f"training-{card}.json"


def _kept(device: str) -> list[dict[str, Any]]:
    _, path = _result_file(device)
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.is_file() else []
    return rows


def _write(device: str, rows: list[dict[str, Any]]) -> None:
    name, path = _result_file(device)
    found = {}
    for package in PACKAGES:
        if importlib.util.find_spec(package):
            found[package] = importlib.metadata.version(package)
    hardware = {"name": name, "cpus": len(os.sched_getaffinity(0)), "machine": platform.machine()}
    results = {"hardware": hardware, "versions": found, "rows": rows}
    path.write_text(json.dumps(results, indent=1) + "\n")


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


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    main()

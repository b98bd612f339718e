"""Compare the engines' losses on a GPU, and measure the memory of the profiles for 3B models.

    python bench/engines.py            # every engine and precision; writes bench/results/engines.json
    python bench/engines.py plain/float32 unsloth/float32

Weights are random and made by this program: valid for equality and memory, meaningless for quality. Each
case is a run of `python -m trainer arm` in its own process. It needs the packages of
trainer/requirements-cuda.txt. For a case that fails, the result is the end of its output.
"""

import argparse
import json
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "bench" / "results" / "engines.json"
WORK = Path(os.environ.get("ENGINES_WORK", "/tmp/finechat-engines"))
ROWS = WORK / "rows.jsonl"
AT_ONCE = 5  # a case is mostly start-up, on one core
TEMPLATE = (
    "{% for m in messages %}{{ '<s> ' + m['role'] + ' ' + m['content'] + ' </s> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s> assistant ' }}{% endif %}"
)
SMALL = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 49152,
}  # fmt: skip
LLAMA_3B = {
    "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
}  # fmt: skip
PRECISIONS = {
    "float32": ["train.dtype=float32"],
    "bfloat16": ["train.dtype=bfloat16"],
    "4bit-bfloat16": ["train.dtype=bfloat16", "train.quantization=4bit"],
}
SMALL_CASES = [f"{engine}/{precision}" for precision in PRECISIONS for engine in ("plain", "unsloth")]
PROFILE_CASES = ["t4-qlora/unsloth", "t4-qlora/plain", "llama-3.2-3b/plain", "llama-3.2-3b/compiled"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "cases", nargs="*", default=PROFILE_CASES + SMALL_CASES, help="SHAPE/ENGINE or ENGINE/DTYPE"
    )
    cases = parser.parse_args().cases
    WORK.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    for shape in (SMALL, LLAMA_3B):
        make_base(shape)
    make_rows()
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for case, result in zip(cases, threads.map(run, cases), strict=True):
            found[case] = result
            results = {"gpu": gpu_name(), "runs": found, "largest_relative_difference": differences(found)}
            RESULT.write_text(json.dumps(results, indent=1) + "\n")
            print(case, {k: v for k, v in result.items() if not isinstance(v, list)}, flush=True)
    print(json.dumps(differences(found), indent=1))


def run(case: str) -> dict[str, Any]:
    """Return one case's losses and memory, or the end of its output if it failed."""
    name, _, last = case.partition("/")
    if case in PROFILE_CASES:
        shape, config, steps = LLAMA_3B, ROOT / f"trainer/configs/{name}.yaml", 8
        overrides = [f"train.engine={last}", "data.held_out_share=0.05", "evaluate.benchmarks=[]"]
    else:
        shape, config, steps = SMALL, ROOT / "docs/sweep/config.yaml", 10
        overrides = [f"train.engine={name}", *PRECISIONS[last], "base.gguf_package=null"]
        overrides += ["base.gguf_sha256=null", "data.near_duplicates=null"]
    overrides += [f"base.path={base_of(shape)}", f"data.source={ROWS}", "data.general=null"]
    if not torch.cuda.is_available():
        overrides.append("train.device=cpu")
    artifacts = WORK / "artifacts" / case.replace("/", "-")
    command = [sys.executable, "-m", "trainer", "arm", "--steps", str(steps)]
    command += ["--config", str(config), "--artifacts", str(artifacts)]
    flags = [part for override in overrides for part in ("--set", override)]
    done = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True)
    results = list(artifacts.glob("runs/*/*/result.json"))
    if done.returncode or not results:
        return {"failed": (done.stdout + done.stderr).strip()[-600:]}
    record = json.loads(results[0].read_text())
    return {
        "step_losses": [loss for _, loss in record["train_curve"]],
        "row_losses": [row[0] for row in record["validation"]["rows"]],
        "peak_gpu_memory_gib": record["peak_gpu_memory_gib"],
    }


def differences(found: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Compare unsloth with plain for each precision that both have finished."""
    results = {}
    for precision in PRECISIONS:
        plain, unsloth = (found.get(f"{engine}/{precision}", {}) for engine in ("plain", "unsloth"))
        if "step_losses" in plain and "step_losses" in unsloth:
            results[precision] = {
                name: max(abs(a - b) / abs(a) for a, b in zip(plain[name], unsloth[name], strict=True))
                for name in ("step_losses", "row_losses")
            }
    return results


def base_of(shape: dict[str, int]) -> Path:
    return WORK / f"base-{shape['hidden_size']}"


def make_base(shape: dict[str, int]) -> None:
    """Make a random-weight Llama of this shape in bfloat16, with a tokenizer of whole words."""
    path = base_of(shape)
    if (path / "tokenizer_config.json").is_file():
        return
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(
            LlamaConfig(
                **shape, max_position_embeddings=8192, tie_word_embeddings=True,
                pad_token_id=0, bos_token_id=1, eos_token_id=2,
            )
        )  # fmt: skip
    model.save_pretrained(path)
    words = ["<pad>", "<s>", "</s>", "user", "assistant", *(f"w{i}" for i in range(shape["vocab_size"] - 5))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(path)


def make_rows() -> None:
    """Write 600 rows of log-normal lengths over 200 words, so that there is something to learn."""
    rng = random.Random(1)
    with ROWS.open("w") as file:
        for _ in range(600):
            count = max(12, min(900, int(rng.lognormvariate(5.3, 0.8))))
            words = [f"w{rng.randrange(200) * 97}" for _ in range(count)]
            asked, answer = " ".join(words[: count // 3]), " ".join(words[count // 3 :])
            turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
            file.write(json.dumps({"conversations": turns, "source": "made"}) + "\n")


def gpu_name() -> str | None:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


if __name__ == "__main__":
    main()

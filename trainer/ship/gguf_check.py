"""Ask llama.cpp itself what a GGUF file answers, and compare it with the artifact in float32.

llama.cpp comes in the package `xllamacpp`, a wheel of its server. It is needed for nothing else.
"""

import contextlib
import json
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.base_model import load_model, load_tokenizer
from trainer.data.chat_template import DATE
from trainer.errors import GateError, MissingError
from trainer.files import read_json
from trainer.ship.gguf_tokenizer import adds_bos
from trainer.ship.manifest import MANIFEST

THREADS = 2
PROMPTS, TOKENS = 8, 16
END = -1  # any end token, in an answer
# How many nats less likely than its own token the artifact may find llama.cpp's, where the two part.
TOLERANCE = {"gguf-f16": 0.1, "gguf-lora": 0.1, "gguf-q8_0": 0.5, "gguf-q4_k_m": 2.0}


@dataclass(frozen=True, slots=True)
class Compared:
    """The first tokens of answers. same: of `count`. gap: the largest, in nats, where answers part."""

    prompts: int
    same: int
    count: int
    gap: float


class LlamaCpp:
    """llama.cpp with one model, and an adapter on it if one is given. It listens on a port of 127.0.0.1."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def tokenize(self, text: str) -> list[int]:
        """Return the tokens of a prompt, with the BOS that llama.cpp puts in front of it."""
        found = self._ask("tokenize", {"content": text, "add_special": True, "parse_special": True})
        tokens: list[int] = found["tokens"]
        return tokens

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """Return the likeliest tokens after a prompt, at most `count`, with END for an end token."""
        found = self._complete(prompt, count, 0)
        return [*found["tokens"], *([END] if found["stop_type"] == "eos" else [])]

    def following(self, prompt: Sequence[int], count: int) -> dict[int, float]:
        """Return the `count` likeliest next tokens with their log probabilities."""
        (step,) = self._complete(prompt, 1, count)["completion_probabilities"]
        return {top["id"]: top["logprob"] for top in step["top_logprobs"]}

    def _complete(self, prompt: Sequence[int], count: int, probabilities: int) -> dict[str, Any]:
        return self._ask("completion", {
            "prompt": list(prompt), "n_predict": count, "n_probs": probabilities, "temperature": 0.0,
            "return_tokens": True, "cache_prompt": False,
        })  # fmt: skip

    def _ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self._server.listening_address}/{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            found: dict[str, Any] = json.load(answer)
        return found


@contextlib.contextmanager
def llama_cpp(model: Path, adapter: Path | None = None) -> Iterator[LlamaCpp]:
    """Yield llama.cpp with a GGUF loaded. Raises: MissingError if `xllamacpp` is not installed."""
    try:
        import xllamacpp
    except ImportError:
        raise MissingError(
            "llama.cpp is not installed here, which checks a GGUF: `pip install xllamacpp` into "
            ".venv/trainer brings it"
        ) from None
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 0, 1, False, -1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = THREADS
    if adapter:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
    server = xllamacpp.Server(params)
    try:
        yield LlamaCpp(server)
    finally:
        del server


def check_gguf(name: str, file: Path, artifact: Path, adapter: Path | None = None) -> Compared:
    """Compare llama.cpp's greedy answers to the artifact's prompts with those of the artifact in float32.

    name: of the format. Raises: MissingError; GateError if the prompts have other tokens in llama.cpp, or if
    answers part where the artifact is surer than the format's tolerance allows.
    """
    tokenizer, model = load_tokenizer(artifact), load_model(artifact, "float32", "cpu")
    gaps, same, count = [0.0], 0, 0
    prompts = _prompts(artifact)
    with llama_cpp(file, adapter) as runtime:
        for turns in prompts:
            text = tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True, date_string=DATE
            )
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            bos = [tokenizer.bos_token_id] if adds_bos(tokenizer) else []
            if runtime.tokenize(text) not in (ids, bos + ids):
                raise GateError(f"{file}: llama.cpp reads other tokens than the artifact in {turns[-1]!r}")
            wanted = _answer(model, ids)
            found = runtime.greedy(ids, len(wanted))
            pairs = enumerate(zip(wanted, found, strict=False))
            parts = next((i for i, (own, other) in pairs if own != other), min(len(wanted), len(found)))
            same, count = same + parts, count + len(wanted)
            if parts < min(len(wanted), len(found)):
                gaps.append(_gap(model, ids + wanted[:parts], wanted[parts], found[parts]))
    compared = Compared(len(prompts), same, count, max(gaps))
    if compared.gap > TOLERANCE[name]:
        raise GateError(
            f"{file}: llama.cpp's answers are not the artifact's: a token that it takes is "
            f"{compared.gap:.2f} nats less likely in the artifact, expected at most {TOLERANCE[name]}"
        )
    return compared


def _prompts(artifact: Path) -> list[list[dict[str, str]]]:
    """Return conversations that end with a question: those of samples.json, then the manifest's examples."""
    samples = read_json(artifact / "samples.json") or []
    found = [[*s.get("earlier", []), {"role": "user", "content": s["prompt"]}] for s in samples]
    examples = (read_json(artifact / MANIFEST) or {}).get("examples", [])
    return [*found, *([{"role": "user", "content": text}] for text in examples)][:PROMPTS]


@torch.inference_mode()
def _answer(model: Any, ids: list[int]) -> list[int]:
    """Return the first tokens of the artifact's answer, without an end token."""
    ends, prompt = model.generation_config.eos_token_id, torch.tensor([ids])
    answer = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),  # else transformers masks what looks like padding
        do_sample=False,
        max_new_tokens=TOKENS,
        pad_token_id=ids[0],
        repetition_penalty=1.0,
    )[0, len(ids) :].tolist()
    return [token for token in answer if token not in (ends if isinstance(ends, list) else [ends])]


@torch.inference_mode()
def _gap(model: Any, ids: list[int], own: int, other: int) -> float:
    """Return by how much the artifact prefers its own next token to another one, in nats."""
    logits, ends = model(input_ids=torch.tensor([ids])).logits[0, -1], _ends(model)
    first, second = (logits[ends].max() if token == END else logits[token] for token in (own, other))
    return float(first - second)


def _ends(model: Any) -> list[int]:
    ends = model.generation_config.eos_token_id
    return ends if isinstance(ends, list) else [ends]

"""A tiny random Llama with a real tokenizer and a ChatML template: real code paths, in seconds."""

import importlib.resources
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.support.trainer import rows
from trainer.objective import sft
from trainer.ship.gguf_tokenizer import LLAMA3_SPLIT
from trainer.ship.store import publish

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, one token a byte, three control tokens first."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*CONTROLS, *alphabet])}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    made: PreTrainedTokenizerFast = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=CONTROLS[0], bos_token=CONTROLS[1], eos_token=CONTROLS[2]
    )
    made.chat_template = CHATML
    return made


@pytest.fixture(scope="session")
def tiny_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    model.train(False)
    return model


@pytest.fixture(scope="session")
def base_directory(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: PreTrainedTokenizerFast,
    tiny_model: LlamaForCausalLM,
) -> Path:
    directory = tmp_path_factory.mktemp("base")
    tiny_model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    (directory / "LICENSE").write_text("A licence.\n")
    return directory


@pytest.fixture
def config_values(tmp_path: Path, base_directory: Path) -> dict[str, Any]:
    """A whole configuration over the tiny model and a local JSONL file."""
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows(80)))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("One?\nTwo?\nThree?\n")
    return {
        "name": "tiny",
        "description": "A test.",
        "base": {"id": "tests/tiny", "licence": "apache-2.0", "path": str(base_directory)},
        "data": {
            "source": str(data),
            "max_length": 96,
            "validation_rows": 6,
            "test_rows": 6,
            "general": {
                "prompts": str(prompts), "train_prompts": 1, "test_prompts": 2, "max_new_tokens": 8,
            },
        },
        "lora": {"scaling": 2.0},
        "sweep": {"ranks": [2, 4], "learning_rates": [0.01], "parallel_arms": 2},
        "train": {
            "device": "cpu", "dtype": "float32", "tokens_per_step": 96, "max_steps": 6,
            "save_every_steps": 2,
        },
        "evaluate": {
            "samples": 2, "max_new_tokens": 8, "max_general_loss_increase": 9.0, "min_stopped": 0.0,
        },
    }  # fmt: skip


@pytest.fixture
def config_file(tmp_path: Path, config_values: dict[str, Any]) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(config_values))
    return path


@pytest.fixture
def manifest() -> dict[str, Any]:
    """A whole manifest but `files`, as `build_manifest` makes it."""
    interval = {"value": 0.5, "low": 0.25, "high": 0.75}
    agreement = {"dtype": "float32", "max_logit_difference": 2e-05, "top1_agreement": 0.998}
    return {
        "schema_version": 1,
        "id": "Llama-tiny-0123abcd",
        "name": "Llama-tiny",
        "description": "A test.",
        "created_at": "2026-01-02T03:04:05+00:00",
        "base_model": {
            "id": "tests/tiny", "revision": "main", "licence": "llama3.2", "weights_sha256": "a" * 64,
        },
        "adapter": {"rank": 2, "alpha": 4.0, "target_modules": ["q_proj"], "learning_rate": 0.01},
        "chat_template_date": "26 Jul 2024",
        "data": {"source": "hub:tests/rows@abc", "fingerprint": "b" * 64, "rows": {"train": 60, "test": 6}},
        "config_hash": "c" * 64,
        "seed": 7,
        "packages": {"torch": "2.0"},
        "hardware": {"processor": "A|B", "cores": 2, "memory_gib": 4.0, "accelerator": None},
        "training": {
            "steps": 6, "best_step": 6, "learning_rate": 0.01, "seed": 7,
            "engine": "compiled", "dtype": "bfloat16",
            "quantization": "fp8", "train_seconds": 1.0, "tokens_per_second": 9.0,
            "validation_loss": interval,
        },
        "selection": {
            "metric": "loss",
            "winner": "r2",
            "separable": True,
            "reason": "r2 is the only setting",
            "power": None,
            "settings": [
                {
                    "name": "r2", "seeds": [7], "compared_seeds": [7], "steps": 6, "validation_score": 1.0,
                    "difference_to_best": interval,
                }
            ],
        },
        "merge_check": {"positions": 9, "fp32": agreement, "shipped": agreement, "passed": True},
        "evaluation": {
            "passed": True,
            "gates": [{"name": "test loss", "passed": True, "detail": "-0.1"}],
            "metrics": [
                {
                    "name": name, "split": "test", "unit": "nats a token", "n": 6,
                    "base": interval, "tuned": interval, "difference": interval,
                }
                for name in ("loss", "exact_match", "general_chat_loss")
            ],
        },
    }  # fmt: skip


@pytest.fixture
def artifact(tmp_path: Path, base_directory: Path, manifest: dict[str, Any]) -> Path:
    """The tiny model published as one made from a Llama 3.2 base."""
    scratch, directory = tmp_path / "merged", tmp_path / "artifacts" / "models" / str(manifest["id"])
    shutil.copytree(base_directory, scratch)
    publish(scratch, directory, manifest, sft, [base_directory / "LICENSE"])
    return directory


LLAMA3_CONTROLS = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", "<|start_header_id|>",
    "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>",
)  # fmt: skip


@pytest.fixture
def llama3_tokenizer() -> PreTrainedTokenizerFast:
    """Llama 3.2's shape: its way of splitting text, its control tokens and template, a BOS in front."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("1", "2"), ("12", "3"), ("Ġ", "a")]
    vocab = {t: i for i, t in enumerate([*alphabet, *map("".join, merges), *LLAMA3_CONTROLS])}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(list(LLAMA3_CONTROLS))
    bos = LLAMA3_CONTROLS[0]
    inner.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, vocab[bos])]
    )
    made = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=bos, eos_token="<|eot_id|>")
    made.chat_template = (importlib.resources.files("trl") / "chat_templates/llama3_2.jinja").read_text()
    return made


@pytest.fixture
def chatml_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level with merges, cut as GPT-2 does, with control tokens first."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("1", "2"), ("Ġ", "a"), ("l", "l"), ("ll", "o")]
    vocab = {t: i for i, t in enumerate([*CONTROLS, *alphabet, *map("".join, merges)])}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(list(CONTROLS))
    made: PreTrainedTokenizerFast = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=CONTROLS[0], bos_token=CONTROLS[1], eos_token=CONTROLS[2]
    )
    made.chat_template = CHATML
    return made

"""Tiny models of the families that GGUF holds, each with a small tokenizer of its family's kind."""

import functools
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from trainer.ship import gguf_tokenizer
from trainer.ship.gguf_check import llama_cpp

BYTES_IN_FRONT = 3  # control tokens before the vocabulary
CORPUS = (
    "the quick brown fox jumps over the lazy dog and then the other dog in 2026, it's 12345 times as quick. "
    "Hello there, how are you? I'm fine; they'll be there in 10 minutes!\n\nDEF main(x): return x + 42\n"
)
TEXTS = ("Hello, it's 123 a\n\n x 4567!", "the other hé 日本 dog", " a 12345 'RE\r\n\t", "  two  spaces ")
# Some text in the way of each family's turns; a control token of its own ends each.
TURNS = {
    "chatml": ("<|im_start|>{role}\n{content}<|im_end|>\n", "<|im_end|>", "assistant"),
    "gemma": ("<start_of_turn>{role}\n{content}<end_of_turn>\n", "<end_of_turn>", "model"),
    "phi3": ("<|{role}|>\n{content}<|end|>\n", "<|end|>", "assistant"),
    "granite": (
        "<|start_of_role|>{role}<|end_of_role|>{content}<|end_of_text|>\n", "<|end_of_text|>", "assistant",
    ),
}  # fmt: skip
_ROPE = {
    "llama3": {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
    },
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "yarn": {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32,
    },
    "longrope": {
        "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 256,
        "short_factor": [1.0 + i / 8 for i in range(8)], "long_factor": [2.0 + i for i in range(8)],
    },
}  # fmt: skip
_GEMMA3_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 80000.0, "factor": 8.0},
}
# name: (configuration class, its settings, kind of tokenizer, form of turns)
SHAPES: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "llama": ("Llama", {"attention_bias": True, "mlp_bias": True}, "gpt-2", "chatml"),
    "llama3": ("Llama", {"rope_parameters": _ROPE["llama3"], "head_dim": 24}, "llama3", "chatml"),
    "mistral": ("Mistral", {"sliding_window": None}, "metaspace", "chatml"),
    "mistral-tekken": ("Mistral", {"sliding_window": None, "head_dim": 32}, "tekken", "chatml"),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}, "qwen2", "chatml"),
    "qwen2-yarn": ("Qwen2", {"rope_parameters": _ROPE["yarn"]}, "qwen2", "chatml"),
    "qwen3": ("Qwen3", {"head_dim": 24}, "qwen2", "chatml"),
    "smollm2": ("Llama", {"tie_word_embeddings": True}, "smollm", "chatml"),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 5}, "llama3", "chatml"),
    "gemma2": (
        "Gemma2",
        {
            "head_dim": 24, "query_pre_attn_scalar": 24, "sliding_window": 16, "num_hidden_layers": 4,
            "tie_word_embeddings": True, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0,
        },
        "gemma",
        "gemma",
    ),
    "gemma3": (
        "Gemma3Text",
        {
            "head_dim": 24, "query_pre_attn_scalar": 24, "sliding_window": 16, "num_hidden_layers": 7,
            "tie_word_embeddings": True, "rope_parameters": _GEMMA3_ROPE,
        },
        "gemma",
        "gemma",
    ),
    "phi3": ("Phi3", {}, "prepended", "phi3"),
    "phi4-mini": (
        "Phi3",
        {
            "tie_word_embeddings": True, "original_max_position_embeddings": 256,
            "rope_parameters": {**_ROPE["longrope"], "partial_rotary_factor": 1.0},
        },
        "gpt-4o",
        "phi3",
    ),
    "granite": (
        "Granite",
        {
            "logits_scaling": 0.5, "attention_multiplier": 0.3, "embedding_multiplier": 6.0,
            "residual_multiplier": 0.4, "tie_word_embeddings": True,
        },
        "smollm",
        "granite",
    ),
}  # fmt: skip


def save_model(name: str, directory: Path, dtype: torch.dtype = torch.float32, **more: Any) -> Path:
    """Write a random model of `SHAPES` with its tokenizer."""
    kind, settings, pieces, turns = SHAPES[name]
    tokenizer = tokenizer_of(pieces, turns)
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{
        "vocab_size": len(tokenizer) + 2, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "tie_word_embeddings": False, "initializer_range": 0.2, "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, **settings, **more,
    })  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    for key, parameter in model.named_parameters():
        if parameter.dim() == 1:  # norms and biases begin at constants, which would hide a lost one
            parameter.data.add_(0.3 * torch.randn_like(parameter))
        assert parameter.isfinite().all(), key
    model.to(dtype).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@functools.cache
def tokenizer_of(kind: str, turns: str) -> PreTrainedTokenizerFast:
    form, end, answers = TURNS[turns]
    controls = ["<unk>", "<s>", "</s>", "<|endoftext|>"]
    inner = _pieces(kind, controls) if kind in ("gemma", "metaspace", "prepended") else _bytes(kind, controls)
    roles = {"assistant": answers, "user": "user", "system": "system"}
    marks = [mark for role in roles.values() for mark in _marks(form.format(role=role, content="\n"))]
    strips = kind == "prepended"
    inner.add_special_tokens(
        [AddedToken(mark, special=True, normalized=False, rstrip=strips) for mark in dict.fromkeys(marks)]
    )
    made: PreTrainedTokenizerFast = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token=end, unk_token="<unk>", pad_token="<unk>"
    )
    head, tail = form.split("{content}")
    opening = head.replace("{role}", "' + (ROLE) + '").replace(
        "ROLE", f"'{answers}' if m.role == 'assistant' else m.role"
    )
    made.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ '"
        + opening
        + "' + m.content + '"
        + tail
        + "' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '" + head.format(role=answers) + "' }}{% endif %}"
    ).replace("\n", "\\n")
    return made


def _marks(text: str) -> list[str]:
    return [part.split(">")[0].join("<>") for part in text.split("<")[1:]]


def _bytes(kind: str, controls: list[str]) -> Tokenizer:
    """A byte-level tokenizer, trained on a line of text, that cuts as `kind` does."""
    from tokenizers.trainers import BpeTrainer

    split = {
        "llama3": gguf_tokenizer.LLAMA3_SPLIT, "qwen2": gguf_tokenizer.QWEN2_SPLIT,
        "gpt-4o": gguf_tokenizer.GPT4O_SPLIT, "tekken": gguf_tokenizer.TEKKEN_SPLIT,
    }.get(kind)  # fmt: skip
    inner = Tokenizer(models.BPE(ignore_merges=kind in ("llama3", "tekken")))
    if split:
        first: Any = pre_tokenizers.Split(Regex(split), "isolated")
    else:
        first = pre_tokenizers.Digits(individual_digits=True) if kind == "smollm" else None
    second = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    inner.pre_tokenizer = pre_tokenizers.Sequence([first, second]) if first else second
    inner.normalizer = normalizers.NFC() if kind == "qwen2" else None
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=340, special_tokens=controls, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator([CORPUS] * 4, trainer)
    return inner


def _pieces(kind: str, controls: list[str]) -> Tokenizer:
    """A tokenizer with SentencePiece's merges: each way to split a piece, in the order of the pieces."""
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    letters = [*sorted(set(CORPUS) - {" ", "\n"}), "▁"]
    longer = [
        "th", "he", "in", "▁t", "the", "▁the", "er", "re", "qu", "ui", "ck", "ick", "quick", "▁d", "og",
        "dog", "▁dog", "ot", "her", "other", "▁o", "▁other", "▁▁", "ll", "ell", "Hell", "He", "Hello",
        "12", "34",
    ]  # fmt: skip
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys([*controls, *bytes_, *letters, *longer]))}
    merges = [
        (piece[:i], piece[i:])
        for piece in longer
        for i in range(1, len(piece))
        if piece[:i] in vocabulary and piece[i:] in vocabulary
    ]
    inner = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    replaced = normalizers.Replace(" ", "▁")
    if kind == "gemma":
        inner.normalizer = replaced
        inner.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    elif kind == "prepended":
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replaced])
    else:
        inner.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    inner.add_special_tokens([AddedToken(c, special=True, normalized=False) for c in controls])
    return inner


@torch.inference_mode()
def log_probabilities(directory: Path) -> tuple[list[int], Any]:
    """Return a prompt after which the model does not end, and transformers' log probabilities after it.

    Attention is transformers' own, since SDPA leaves out the caps of Gemma 2.
    """
    model: Any = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        prompt = torch.randint(BYTES_IN_FRONT, 300, (1, 40), generator=generator)
        following = model(input_ids=prompt).logits[0, -1].log_softmax(-1)
        likeliest = int(following.argmax())
        ends = likeliest in (*range(4), model.config.eos_token_id)
        if not ends and tokenizer.decode([likeliest]).isascii():  # llama.cpp waits for whole characters
            return prompt[0].tolist(), following
    raise AssertionError("the model ends or begins a part of a character after every prompt")


def apart_in_llama_cpp(directory: Path, file: Path) -> float:
    """Return the largest difference between llama.cpp's log probabilities and transformers'."""
    prompt, wanted = log_probabilities(directory)
    with llama_cpp(file) as runtime:
        found = runtime.following(prompt, len(wanted))
    if set(found) != set(range(len(wanted))):
        raise AssertionError(f"llama.cpp has {len(found)} tokens, transformers {len(wanted)}")
    return float(max(abs(wanted[token].item() - value) for token, value in found.items()))

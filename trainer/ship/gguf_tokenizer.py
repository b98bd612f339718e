"""A byte-level BPE tokenizer as GGUF metadata, in the keys that llama.cpp reads.

llama.cpp does not read a tokenizer's rules for cutting text before the merges: it knows them by name.
The name is found by what the rules are; rules that it has no name for are refused, because with others
the model would read other tokens than it was trained on.
"""

import json
from typing import Any

from gguf import GGUFWriter, TokenType

from trainer.errors import ArtifactError
from trainer.ship.stops import special_ids, template_ends

# The pattern at which Llama 3's tokenizer.json splits (llama.cpp knows it as `llama-bpe`).
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def add_tokenizer(writer: GGUFWriter, tokenizer: Any, vocab_size: int) -> None:
    """Vocabulary, merges, control tokens and chat template of a fast tokenizer.

    vocab_size: rows of the embedding; rows without a token are named as unused.
    Raises: ArtifactError if the tokenizer is not one that GGUF can say.
    """
    rules = rules_of(tokenizer)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer_name(rules))
    tokens, types = _vocabulary(tokenizer, vocab_size)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in rules["model"]["merges"]])
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_add_bos_token(adds_bos(tokenizer))
    writer.add_add_space_prefix(False)
    ends = template_ends(tokenizer).ids  # ends that are texts stand in Ollama's Modelfile
    for eos in [id for id in (tokenizer.eos_token_id, *ends) if id is not None][:1]:
        writer.add_eos_token_id(eos)
    for end_of_turn in ends[:1]:
        writer.add_eot_token_id(end_of_turn)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)


def rules_of(tokenizer: Any) -> dict[str, Any]:
    """The content of a fast tokenizer's tokenizer.json."""
    rules: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return rules


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer itself puts a BOS in front of a text."""
    ids = tokenizer("x")["input_ids"]
    return tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id


def pre_tokenizer_name(rules: dict[str, Any]) -> str:
    """llama.cpp's name for how a tokenizer.json cuts text. Raises: ArtifactError if it has none."""
    model, before = rules["model"], rules["pre_tokenizer"] or {}
    parts = before["pretokenizers"] if before.get("type") == "Sequence" else [before]
    seen = (model["type"], bool(model.get("ignore_merges")), rules["normalizer"], *map(_rule, parts))
    names = {
        ("BPE", False, None, "bytes, cut as GPT-2"): "gpt-2",
        ("BPE", False, None, "single digits", "bytes, cut as GPT-2"): "smollm",
        ("BPE", True, None, "cut as Llama 3", "bytes"): "llama-bpe",
    }
    if seen not in names:
        raise ArtifactError(
            f"GGUF has no name for this tokenizer: model {model['type']}, ignore_merges {seen[1]}, "
            f"normalizer {rules['normalizer']}, pre_tokenizer {json.dumps(before)[:200]}; expected "
            "byte-level BPE that cuts text as GPT-2, SmolLM or Llama 3 do; export to fp8 instead"
        )
    return names[seen]


def _rule(part: dict[str, Any]) -> str:
    match part:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
            return "bytes, cut as GPT-2"
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}:
            return "bytes"
        case {"type": "Digits", "individual_digits": True}:
            return "single digits"
        case {"type": "Split", "behavior": "Isolated", "invert": False, "pattern": {"Regex": regex}}:
            return "cut as Llama 3" if regex == LLAMA3_SPLIT else "another cut"
        case _:
            return "unknown"


def _vocabulary(tokenizer: Any, vocab_size: int) -> tuple[list[str], list[int]]:
    """(vocab_size,) tokens in the order of their ids, and their GGUF types."""
    by_id = {i: token for token, i in tokenizer.get_vocab().items()}
    if max(by_id) >= vocab_size:
        raise ArtifactError(
            f"the tokenizer has id {max(by_id)}, and the model's vocabulary ends at {vocab_size - 1}"
        )
    special, added = special_ids(tokenizer), set(tokenizer.added_tokens_decoder)
    tokens, types = [], []
    for i in range(vocab_size):
        tokens.append(by_id.get(i, f"[PAD{i}]"))
        if i not in by_id:
            kind = TokenType.UNUSED
        elif i in special:
            kind = TokenType.CONTROL
        else:
            kind = TokenType.USER_DEFINED if i in added else TokenType.NORMAL
        types.append(int(kind))
    return tokens, types

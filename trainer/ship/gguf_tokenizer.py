"""Write a tokenizer as GGUF metadata, in the keys that llama.cpp reads.

llama.cpp does not read a tokenizer's rules for cutting text before the merges: it knows them by name.
The name is found by what the rules are; rules that it has no name for are refused, because with others
the model would read other tokens than it was trained on. Tokenizers of SentencePiece (Gemma, Phi-3, Mistral)
are in `gguf_sentencepiece`.
"""

import json
import re
from typing import Any

from gguf import GGUFWriter, TokenType
from tokenizers import Tokenizer

from trainer.data.chat_template import DATE
from trainer.errors import ArtifactError
from trainer.ship.gguf_sentencepiece import BYTE, SPACE, is_sentencepiece, piece_scores, space_in_front
from trainer.ship.stops import special_ids, template_ends

# The patterns at which a tokenizer.json splits, by what llama.cpp knows them as.
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CUT_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+{END}"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*{END}"
)
_CASED_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3_SPLIT = _CUT_WORDS + r"\p{N}{1,3}" + _REST
QWEN2_SPLIT = _CUT_WORDS + r"\p{N}" + _REST
GPT4O_SPLIT = _CASED.replace("{END}", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?") + r"|\p{N}{1,3}" + _CASED_REST
TEKKEN_SPLIT = _CASED.replace("{END}", "") + r"|\p{N}" + _CASED_REST
_SPLITS = {
    LLAMA3_SPLIT: "cut as Llama 3", QWEN2_SPLIT: "cut as Qwen 2", GPT4O_SPLIT: "cut as GPT-4o",
    TEKKEN_SPLIT: "cut as Tekken",
}  # fmt: skip
_BYTES = "bytes, cut as GPT-2"
# ignore_merges, then the rules before the merges. A normalizer to NFC changes only texts that are not NFC.
_NAMES: dict[tuple[bool | str, ...], str] = {
    (False, _BYTES): "gpt-2",
    (False, "single digits", _BYTES): "smollm",
    (True, "cut as Llama 3", "bytes"): "llama-bpe",
    (False, "cut as Llama 3", "bytes"): "dbrx",
    (False, "cut as Qwen 2", "bytes"): "qwen2",
    (False, "cut as GPT-4o", "bytes"): "gpt-4o",
    (True, "cut as Tekken", "bytes"): "tekken",
}

_KEEP_BLANKS = ("<unk>", "<s>", "<|endoftext|>")  # also in a Phi-3
_OF_PHI3 = (*_KEEP_BLANKS, "</s>")  # without one of them llama.cpp cannot load it


def add_tokenizer(writer: GGUFWriter, tokenizer: Any, vocab_size: int) -> None:
    """Write vocabulary, merges, control tokens and chat template of a fast tokenizer.

    vocab_size: rows of the embedding; rows without a token are named as unused.
    Raises: ArtifactError if the tokenizer is not one that GGUF can say.
    """
    rules = rules_of(tokenizer)
    pieces = is_sentencepiece(rules)
    writer.add_tokenizer_model("llama" if pieces else "gpt2")
    writer.add_tokenizer_pre(pre_tokenizer_name(rules))
    tokens, types = _vocabulary(tokenizer, vocab_size, rules)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if pieces:
        writer.add_token_scores(piece_scores(rules, tokens))
    else:
        writer.add_token_merges([" ".join(pair) for pair in rules["model"]["merges"]])
    writer.add_add_space_prefix(pieces and space_in_front(rules))
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_add_bos_token(adds_bos(tokenizer))
    ends = template_ends(tokenizer).ids  # ends that are texts stand in Ollama's Modelfile
    for eos in [id for id in (tokenizer.eos_token_id, *ends) if id is not None][:1]:
        writer.add_eos_token_id(eos)
    for end_of_turn in ends[:1]:
        writer.add_eot_token_id(end_of_turn)
    if tokenizer.unk_token_id is not None:
        writer.add_unk_token_id(tokenizer.unk_token_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)


def name_for(tokenizer: Any, name: str) -> str:
    """Return the name to write: llama.cpp reads from it whether control tokens take blanks with them.

    It knows that of Phi-3 only, by its name. Raises: ArtifactError if other control tokens do so.
    """
    plain = re.sub("phi-?3", "Phi 3", name, flags=re.IGNORECASE)
    rules = rules_of(tokenizer)
    if not any(token["lstrip"] or token["rstrip"] for token in rules["added_tokens"]):
        return plain
    turns = [{"role": role, "content": " x\n"} for role in ("user", "assistant", "user")]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, date_string=DATE)
    wanted = tokenizer(text, add_special_tokens=False)["input_ids"]
    for found, right in ((plain, False), (f"{plain} (Phi-3)", True)):
        for token in rules["added_tokens"]:
            token.update(lstrip=False, rstrip=right and token["content"] not in _KEEP_BLANKS)
        again = Tokenizer.from_str(json.dumps(rules)).encode(text, add_special_tokens=False)
        if again.ids == wanted and (not right or set(_OF_PHI3) <= set(tokenizer.get_vocab())):
            return found
    raise ArtifactError("GGUF cannot say which control tokens of this tokenizer take the blanks beside them")


def rules_of(tokenizer: Any) -> dict[str, Any]:
    """The content of a fast tokenizer's tokenizer.json."""
    rules: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return rules


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer itself puts a BOS in front of a text."""
    ids = tokenizer("x")["input_ids"]
    return tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id


def pre_tokenizer_name(rules: dict[str, Any]) -> str:
    """Return llama.cpp's name for how a tokenizer.json cuts text. Raises: ArtifactError if it has none."""
    if is_sentencepiece(rules):
        space_in_front(rules)
        return "default"
    model, before, normalizer = rules["model"], rules["pre_tokenizer"] or {}, rules["normalizer"]
    parts = before["pretokenizers"] if before.get("type") == "Sequence" else [before]
    seen: tuple[bool | str, ...] = (bool(model.get("ignore_merges")), *map(_rule, parts))
    if model["type"] != "BPE" or normalizer not in (None, {"type": "NFC"}) or seen not in _NAMES:
        raise ArtifactError(
            f"GGUF has no name for this tokenizer: model {model['type']}, ignore_merges {seen[0]}, "
            f"normalizer {json.dumps(normalizer)[:100]}, pre_tokenizer {json.dumps(before)[:200]}; expected "
            "byte-level BPE that cuts text as GPT-2, SmolLM, Llama 3, Qwen 2, GPT-4o or Tekken do, or "
            "SentencePiece's"
        )
    return _NAMES[seen]


def _rule(part: dict[str, Any]) -> str:
    match part:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
            return _BYTES
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}:
            return "bytes"
        case {"type": "Digits", "individual_digits": True}:
            return "single digits"
        case {"type": "Split", "behavior": "Isolated", "invert": False, "pattern": {"Regex": regex}}:
            return _SPLITS.get(regex, "another cut")
        case {"type": "Split", "behavior": "Removed", "invert": True, "pattern": {"Regex": regex}}:
            return _SPLITS.get(regex, "another cut")  # keeps what matches: the patterns match everything
        case _:
            return "unknown"


def _vocabulary(tokenizer: Any, vocab_size: int, rules: dict[str, Any]) -> tuple[list[str], list[int]]:
    """(vocab_size,) tokens in the order of their ids, and their GGUF types."""
    by_id = {i: token for token, i in tokenizer.get_vocab().items()}
    if max(by_id) >= vocab_size:
        raise ArtifactError(
            f"the tokenizer has id {max(by_id)}, and the model's vocabulary ends at {vocab_size - 1}"
        )
    special, added = special_ids(tokenizer), set(tokenizer.added_tokens_decoder)
    pieces = is_sentencepiece(rules)
    tokens, types = [], []
    for i in range(vocab_size):
        token = by_id.get(i, f"[PAD{i}]")
        if i not in by_id:
            kind = TokenType.UNUSED
        elif token == rules["model"].get("unk_token"):
            kind = TokenType.UNKNOWN
        elif i in special:
            kind = TokenType.CONTROL
        elif i in added:
            kind = TokenType.USER_DEFINED
        else:
            kind = TokenType.BYTE if pieces and BYTE.fullmatch(token) else TokenType.NORMAL
        tokens.append(token.replace(SPACE, " ") if pieces and kind == TokenType.USER_DEFINED else token)
        types.append(int(kind))
    return tokens, types

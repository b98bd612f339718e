"""Describe a SentencePiece tokenizer (Gemma, Phi-3, Mistral 7B) to llama.cpp by scores of its pieces.

Its tokenizer.json has merges. llama.cpp joins the two neighbours whose joint piece has the highest score.
That is the same if every way to split a piece into two others is a merge, and the merges come in the order of
their pieces, as a conversion from SentencePiece makes them. Other merges are refused.
"""

import re
from itertools import pairwise
from typing import Any

from trainer.errors import ArtifactError

SPACE = "\u2581"  # stands for a space in a piece
BYTE = re.compile("<0x[0-9A-F]{2}>")
_REPLACED = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_PREPENDED = {"type": "Prepend", "prepend": SPACE}


def is_sentencepiece(rules: dict[str, Any]) -> bool:
    """Return whether a tokenizer.json is of BPE over pieces, with bytes for what has no piece."""
    return rules["model"]["type"] == "BPE" and bool(rules["model"].get("byte_fallback"))


def space_in_front(rules: dict[str, Any]) -> bool:
    """Return whether a text gets a space in front of it, also after a control token.

    Raises: ArtifactError if the tokenizer treats spaces in another way than SentencePiece's do.
    """
    normalizer, before = rules["normalizer"] or {}, rules["pre_tokenizer"] or {}
    steps = normalizer.get("normalizers", [normalizer] if normalizer else [])
    if steps == [_PREPENDED, _REPLACED] and not before:
        return True
    if steps == [_REPLACED] and (not before or before.get("type") == "Split"):
        return False  # Gemma: after the replacement its pre-tokenizer finds no space to split at
    if not steps and before.get("type") == "Metaspace" and not before.get("split", True):
        # `first` is the text's own start only, where a conversation has a control token.
        return bool(before["prepend_scheme"] == "always")
    raise ArtifactError(
        f"GGUF cannot say how this SentencePiece tokenizer treats spaces: "
        f"normalizer {str(normalizer)[:120]}, pre_tokenizer {str(before)[:120]}"
    )


def piece_scores(rules: dict[str, Any], tokens: list[str]) -> list[float]:
    """Return a score for each token: the earlier a piece is merged, the higher. Raises: ArtifactError."""
    merges = [tuple(pair) for pair in rules["model"]["merges"]]
    made = [a + b for a, b in merges]
    rank = {piece: number for number, piece in enumerate(dict.fromkeys(made))}
    vocabulary = rules["model"]["vocab"]
    missing = len(
        {(p[:i], p[i:]) for p in rank for i in range(1, len(p)) if _both(p, i, vocabulary)} - set(merges)
    )
    disorder = sum(rank[a] > rank[b] for a, b in pairwise(made))
    if missing or disorder:
        raise ArtifactError(
            f"GGUF cannot say the merges of this tokenizer: {missing} ways to split a piece are no "
            f"merge, and {disorder} merges are out of order; expected one converted from SentencePiece"
        )
    return [-float(rank.get(token, len(rank))) for token in tokens]


def _both(piece: str, place: int, vocabulary: dict[str, int]) -> bool:
    return piece[:place] in vocabulary and piece[place:] in vocabulary

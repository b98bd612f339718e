"""Batched generation with transformers, for evaluation and for the base model's own answers.

Not for serving: that is vLLM's job, in the other service.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

BATCH_ROWS = 64


@dataclass(frozen=True, slots=True)
class Answer:
    """token_ids: as generated, the end-of-turn token included if the model ended by itself."""

    token_ids: list[int]
    stopped: bool


def stop_ids(model: Any) -> list[int]:
    """Tokens that end an answer, from the model's generation config."""
    eos = model.generation_config.eos_token_id
    return list(eos) if isinstance(eos, list) else [eos]


@torch.inference_mode()
def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    pad_id: int,
    max_new_tokens: int,
    sample_seed: int | None = None,
) -> list[Answer]:
    """Answer every prompt: greedily, or sampled at temperature 1 from the whole vocabulary."""
    sampling: dict[str, Any] = {"do_sample": False}
    if sample_seed is not None:
        torch.manual_seed(sample_seed)
        sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    stops = stop_ids(model)
    device = next(model.parameters()).device
    answers: list[Answer | None] = [None] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for at in range(0, len(order), BATCH_ROWS):
        indices = order[at : at + BATCH_ROWS]
        width = max(len(prompts[i]) for i in indices)
        ids = torch.full((len(indices), width), pad_id)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(indices):
            ids[row, width - len(prompts[i]) :] = torch.tensor(prompts[i])
            mask[row, width - len(prompts[i]) :] = 1
        out = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=max_new_tokens,
            pad_token_id=pad_id,
            **sampling,
        )
        for i, tokens in zip(indices, out[:, width:].tolist(), strict=True):
            answers[i] = _cut(tokens, stops)
    return [answer for answer in answers if answer is not None]


def _cut(tokens: list[int], stops: list[int]) -> Answer:
    """Cut the padding after the first stop token."""
    for i, token in enumerate(tokens):
        if token in stops:
            return Answer(tokens[: i + 1], stopped=True)
    return Answer(tokens, stopped=False)

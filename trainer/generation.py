"""Batched generation with transformers, for evaluation and for the base model's own answers.

Answers come from the model's bare distribution: the penalties, temperature and cuts that a base suggests
in its generation config are left out, so that figures are those of the model and not of a sampler.
Serving is vLLM's job, in the other service.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria

BATCH_ROWS = 64


@dataclass(frozen=True, slots=True)
class Answer:
    """token_ids: as generated, the end-of-turn token included if the model ended by itself.

    top_ids, top_logprobs: for each token the most likely tokens at its place, if they were asked for.
    """

    token_ids: list[int]
    stopped: bool
    top_ids: list[list[int]] = field(default_factory=list)
    top_logprobs: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class TextEnds:
    """Ends of answers that are texts of several tokens. decode: returns the text of tokens."""

    texts: tuple[str, ...]
    decode: Callable[[Sequence[int]], str]

    def within(self, ids: Sequence[int]) -> bool:
        """Return whether one of them is in the text of `ids`."""
        text = self.decode(ids)
        return any(end in text for end in self.texts)


class _StopsAt(StoppingCriteria):
    """Stop a row once its answer has a text that ends it. begin: where answers begin."""

    def __init__(self, ends: TextEnds, begin: int) -> None:
        self._ends = ends
        self._begin = begin

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        answers = input_ids[:, self._begin :].tolist()
        return torch.tensor([self._ends.within(ids) for ids in answers], device=input_ids.device)


class _TopTokens(LogitsProcessor):
    """Record the most likely tokens of every step, and change nothing."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.steps: list[tuple[list[list[int]], list[list[float]]]] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if self._count:
            logprobs, ids = scores.float().log_softmax(-1).topk(self._count)
            self.steps.append((ids.tolist(), [[round(x, 4) for x in row] for row in logprobs.tolist()]))
        return scores

    def of(self, row: int, tokens: int) -> tuple[list[list[int]], list[list[float]]]:
        """Return the ids and log-probabilities of a row's first `tokens` steps."""
        kept = self.steps[:tokens]
        return [ids[row] for ids, _ in kept], [logprobs[row] for _, logprobs in kept]


def stop_ids(model: Any) -> list[int]:
    """Return the tokens that end an answer, from the model's generation config."""
    eos = model.generation_config.eos_token_id
    return list(eos) if isinstance(eos, list) else [eos]


@contextlib.contextmanager
def bare_distribution(model: Any) -> Iterator[None]:
    """Leave only stop and pad tokens in the model's generation config while the block lasts.

    transformers takes every value that a caller does not set from there (repetition_penalty, min_p, ...).
    """
    suggested = model.generation_config
    ends = {name: getattr(suggested, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    model.generation_config = GenerationConfig(**{f"{name}_token_id": ids for name, ids in ends.items()})
    try:
        yield
    finally:
        model.generation_config = suggested


@torch.inference_mode()
def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    pad_id: int,
    max_new_tokens: int,
    sample_seed: int | None = None,
    top_tokens: int = 0,
    text_ends: TextEnds | None = None,
) -> list[Answer]:
    """Answer every prompt from the bare distribution: greedily, or sampled at temperature 1.

    top_tokens: record this many of the most likely tokens at each place. text_ends: end answers, too.
    """
    sampling: dict[str, Any] = {"do_sample": False}
    if sample_seed is not None:
        torch.manual_seed(sample_seed)
        sampling = {"do_sample": True, "top_k": 0}  # transformers' own default is 50
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
        top = _TopTokens(top_tokens)
        with bare_distribution(model):
            out = model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=max_new_tokens,
                pad_token_id=pad_id,
                logits_processor=[top],
                stopping_criteria=[_StopsAt(text_ends, width)] if text_ends else [],
                **sampling,
            )
        for row, (i, tokens) in enumerate(zip(indices, out[:, width:].tolist(), strict=True)):
            kept, stopped = _cut(tokens, stops, text_ends)
            answers[i] = Answer(kept, stopped, *top.of(row, len(kept)))
    return [answer for answer in answers if answer is not None]


def _cut(tokens: list[int], stops: list[int], text_ends: TextEnds | None) -> tuple[list[int], bool]:
    """Cut off the padding after what ends the answer; return whether something does."""
    for i, token in enumerate(tokens):
        if token in stops or (text_ends and text_ends.within(tokens[: i + 1])):
            return tokens[: i + 1], True
    return tokens, False

"""Rows of general chat: the base model's own answers, sampled, to prompts of ours.

Training on a few keeps the base's manner; on held-out ones the tuned model's extra loss is an
unbiased estimate of the divergence KL(base || tuned) a token, since the answers are samples of the
base at temperature 1. The prompts are ours, so no third-party text is stored.
"""

from trainer.base_model import BaseModel, load_model
from trainer.config import GeneralChatConfig
from trainer.data.conversation import Message
from trainer.data.tokenize import IGNORED, ChatTokenizer, TokenRow
from trainer.errors import DataError
from trainer.generation import generate

SOURCE = "general chat"  # of these rows, in the report and in losses by source


def answer_prompts(
    config: GeneralChatConfig,
    base: BaseModel,
    chat: ChatTokenizer,
    dtype: str,
    device: str,
    seed: int,
) -> tuple[list[TokenRow], list[TokenRow]]:
    """Rows to train on and rows to measure on, from disjoint prompts."""
    prompts = _read_prompts(config)
    wanted = config.train_prompts + config.test_prompts
    ids = [chat.prompt_ids([Message("user", prompt)]) for prompt in prompts[:wanted]]
    model = load_model(base.directory, dtype, device)
    answers = generate(model, ids, chat.pad_id, config.max_new_tokens, sample_seed=seed)
    rows = [
        TokenRow([*prompt, *answer.token_ids], [IGNORED] * len(prompt) + answer.token_ids, text, SOURCE)
        for prompt, answer, text in zip(ids, answers, prompts, strict=False)
    ]
    return rows[config.test_prompts :], rows[: config.test_prompts]


def _read_prompts(config: GeneralChatConfig) -> list[str]:
    try:
        lines = config.prompts.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"data.general.prompts {config.prompts}: {error.strerror}") from None
    prompts = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    wanted = config.train_prompts + config.test_prompts
    if len(prompts) < wanted:
        raise DataError(f"{config.prompts} holds {len(prompts)} prompts, {wanted} are asked for")
    return prompts

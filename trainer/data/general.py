"""Make rows of general chat: the base model's own answers to the project's prompts.

Training on a few of them preserves the base's style. On held-out ones the tuned model's extra loss is an
unbiased estimate of KL(base || tuned) a token, because the answers are samples of the base's bare
distribution at temperature 1. The prompts belong to the project, so no third-party text is stored.
"""

from pathlib import Path

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
    """Return rows to train on and rows to measure on, from disjoint prompts."""
    wanted = config.train_prompts + config.test_prompts
    prompts = read_prompts(config.prompts, "data.general.prompts")
    if len(prompts) < wanted:
        raise DataError(f"{config.prompts} holds {len(prompts)} prompts, expected at least {wanted}")
    ids = [chat.prompt_ids([Message("user", prompt)]) for prompt in prompts[:wanted]]
    model = load_model(base.directory, dtype, device)
    answers = generate(model, ids, chat.pad_id, config.max_new_tokens, sample_seed=seed)
    rows = [
        TokenRow([*prompt, *answer.token_ids], [IGNORED] * len(prompt) + answer.token_ids, text, SOURCE)
        for prompt, answer, text in zip(ids, answers, prompts, strict=False)
    ]
    return rows[config.test_prompts :], rows[: config.test_prompts]


def read_prompts(file: Path, key: str) -> list[str]:
    """Read one prompt a line, without empty lines and lines that begin with #.

    key: the setting that names the file. Raises: DataError if it cannot be read or holds no prompt.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{key} {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{key} {file} is not UTF-8 text") from None
    prompts = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not prompts:
        raise DataError(f"{key} {file} holds no prompt; write one a line")
    return prompts

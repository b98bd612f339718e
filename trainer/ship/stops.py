"""Find the tokens that end an answer, from the tokenizer, its chat template and the base model.

Without the end-of-turn token in `generation_config.json` a server continues past the answer of a model that
was trained to end its turns. Nothing here depends on a model's name.
"""

from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from trainer.data.chat_template import DATE
from trainer.errors import BaseModelError

_ANSWER = "finechat-answer"


def end_of_turn_id(tokenizer: Any) -> int:
    """Return the control token that the chat template puts after an answer.

    Raises: BaseModelError if the template puts none there, or refuses an answer.
    """
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _ANSWER}]
    try:
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, date_string=DATE)
    except Exception as error:  # a template is a program: it may raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BaseModelError(f"the chat template cannot render a question and its answer: {reason}") from None
    _, found, behind = str(rendered).rpartition(_ANSWER)
    ids = tokenizer(behind.lstrip(), add_special_tokens=False)["input_ids"] if found else []
    if not ids or ids[0] not in special_ids(tokenizer):
        raise BaseModelError(
            f"the chat template puts {behind[:40]!r} behind an answer, expected a control token: a model "
            "trained with it cannot end its turns; use a tokenizer whose template has one"
        )
    return int(ids[0])


def special_ids(tokenizer: Any) -> set[int]:
    return {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}


def set_stop_tokens(model: Any, tokenizer: Any) -> None:
    """Give the model every id that ends an answer, and model and tokenizer a pad token of their own.

    The ids are the base model's own, the tokenizer's and the template's end of turn.
    Raises: BaseModelError as `end_of_turn_id`.
    """
    end_of_turn = end_of_turn_id(tokenizer)
    config = model.generation_config
    ids = {end_of_turn, tokenizer.eos_token_id, *_listed(config.eos_token_id)} - {None}
    if tokenizer.pad_token_id in (None, end_of_turn):  # a mask of padding would hide the end too
        tokenizer.pad_token = _pad_token(tokenizer, end_of_turn)
    config.eos_token_id = sorted(ids)
    config.pad_token_id = model.config.pad_token_id = tokenizer.pad_token_id
    config._from_model_config = False  # otherwise a loader may use the ids of config.json


def stop_tokens(directory: Path, tokenizer: Any) -> list[str]:
    """Return the tokens that end an answer as texts, by the directory's generation_config.json."""
    config = GenerationConfig.from_pretrained(directory)
    return [str(tokenizer.convert_ids_to_tokens(i)) for i in _listed(config.eos_token_id)]


def _listed(ids: Any) -> list[Any]:
    return ids if isinstance(ids, list) else [ids]


def _pad_token(tokenizer: Any, end_of_turn: int) -> str:
    """Return a control token made for padding; else one that ends no answer; else the end of turn."""
    controls = {i: tokenizer.convert_ids_to_tokens(i) for i in sorted(special_ids(tokenizer))}
    made_for_it = [token for token in controls.values() if "pad" in token]
    others = [token for i, token in controls.items() if i not in (end_of_turn, tokenizer.bos_token_id)]
    return str([*made_for_it, *others, controls[end_of_turn]][0])

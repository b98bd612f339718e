"""Find what ends an answer, from the tokenizer, its chat template and the base model.

Without the template's end in `generation_config.json` a server continues past the answer of a model that was
trained to end its turns. It is a control token, several, or a text of several tokens: ChatML on a tokenizer
that does not know it. Nothing here depends on a model's name.
"""

from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from trainer.data.chat_template import DATE
from trainer.data.template_form import Ends, Turn, ends_of, in_channels, tool_form
from trainer.errors import BaseModelError


def template_ends(tokenizer: Any) -> Ends:
    """Return what the chat template puts behind answers of text and of calls.

    Raises: BaseModelError if it puts no end there, refuses an answer, or has answers in channels.
    """

    def render(turns: list[Turn], tools: list[Turn], begins: bool) -> str:
        return str(
            tokenizer.apply_chat_template(
                turns, tools=tools or None, tokenize=False, add_generation_prompt=begins, date_string=DATE
            )
        )

    if in_channels(render):
        raise BaseModelError(
            "the chat template writes answers in channels (OpenAI's Harmony), which neither training nor the "
            "API reads; use a base with another template, or set data.chat_template"
        )
    try:
        ends = ends_of(tokenizer, render, tool_form(render))
    except Exception as error:  # a template is a program: it may raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BaseModelError(f"the chat template cannot render a question and its answer: {reason}") from None
    if not (ends.ids or ends.texts):
        raise BaseModelError(
            "the chat template puts nothing behind an answer, expected a control token or a mark such as "
            "<|im_end|>: a model trained with it cannot end its turns; use a tokenizer whose template has one"
        )
    return ends


def end_of_turn(tokenizer: Any) -> str:
    """Return the first thing that the chat template puts after an answer. Raises: as `template_ends`."""
    ends = template_ends(tokenizer)
    return str(tokenizer.convert_ids_to_tokens(ends.ids[0])) if ends.ids else ends.texts[0]


def special_ids(tokenizer: Any) -> set[int]:
    return {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}


def set_stop_tokens(model: Any, tokenizer: Any) -> None:
    """Give the model all that ends an answer, and model and tokenizer a pad token of their own.

    The ids are the base model's own, the tokenizer's and the template's ends of turns. Ends that are texts
    become `stop_strings`, which transformers reads if it is given the tokenizer.
    Raises: BaseModelError as `template_ends`.
    """
    ends = template_ends(tokenizer)
    config = model.generation_config
    ids = {*ends.ids, tokenizer.eos_token_id, *_listed(config.eos_token_id)} - {None}
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in ends.ids:
        # With the end as padding a mask of padding would hide the end too.
        tokenizer.pad_token = _pad_token(tokenizer, ends.ids)
    config.eos_token_id = sorted(ids)
    config.stop_strings = list(ends.texts) or None
    config.pad_token_id = model.config.pad_token_id = tokenizer.pad_token_id
    config._from_model_config = False  # otherwise a loader may use the ids of config.json


def stop_tokens(directory: Path, tokenizer: Any) -> list[str]:
    """Return what ends an answer as texts, by the directory's generation_config.json."""
    config = GenerationConfig.from_pretrained(directory)
    tokens = [str(tokenizer.convert_ids_to_tokens(i)) for i in _listed(config.eos_token_id)]
    return [*tokens, *(config.stop_strings or ())]


def _listed(ids: Any) -> list[Any]:
    return ids if isinstance(ids, list) else [ids]


def _pad_token(tokenizer: Any, ends: tuple[int, ...]) -> str:
    """Return a control token made for padding; else one that ends no answer; else an end; else the first."""
    controls = {i: tokenizer.convert_ids_to_tokens(i) for i in sorted(special_ids(tokenizer))}
    made_for_it = [token for token in controls.values() if "pad" in token]
    others = [token for i, token in controls.items() if i not in (*ends, tokenizer.bos_token_id)]
    return str([*made_for_it, *others, *controls.values(), tokenizer.convert_ids_to_tokens(0)][0])

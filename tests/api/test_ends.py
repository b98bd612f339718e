"""Answers end where the model's chat template ends them, whatever its generation_config.json says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from api.engine.delta import Delta
from api.engine.engine import _without_stops
from api.engine.prompt import Prompt
from api.engine.sampling import Sampling, sampling_arguments
from api.engine.template_form import Ends
from api.errors import ArtifactError
from tests.support.api import House, ask, post
from tests.support.ends import CASES, CHANNELS, tokenizer_of

ENDS = Ends((7, 8), ("<|im_end|>",))


@pytest.mark.parametrize("family", CASES)
def test_what_ends_an_answer_is_what_the_template_puts_behind_it(family: str) -> None:
    case = CASES[family]
    tokenizer = tokenizer_of(case.template, case.controls)
    ends = Prompt(tokenizer).ends
    assert (tuple(tokenizer.convert_ids_to_tokens(list(ends.ids))), ends.texts) == (case.ids, case.texts)


@pytest.mark.parametrize(
    ("asked", "ids", "texts"),
    [
        (Sampling(), [7, 8], ["<|im_end|>"]),
        (Sampling(stop="x", stop_token_ids=[3]), [3, 7, 8], ["x", "<|im_end|>"]),
        (Sampling(stop=["x", "y"], ignore_eos=True), None, ["x", "y"]),
    ],
)
def test_the_ends_of_a_template_hold_beside_those_of_a_request(asked: Any, ids: Any, texts: Any) -> None:
    arguments, _ = sampling_arguments(asked, {}, 5, ENDS)
    assert (arguments.get("stop_token_ids"), arguments.get("stop")) == (ids, texts)


def test_an_end_of_the_template_is_no_stop_string_of_the_client() -> None:
    def made(stop: str) -> Delta:
        return Delta("", 1, "stop", stop=stop)

    assert [_without_stops(made, ENDS.texts, stop).stop for stop in ("x", "<|im_end|>")] == ["x", None]


@pytest.mark.anyio
async def test_every_request_has_the_ends_of_the_template(make_house: Callable[..., House]) -> None:
    house = make_house()
    await post(house, json=ask())
    assert house.engine.calls[0]["ends"] == Ends((258,), ()), "ChatML's"
    assert not house.engine.calls[0]["show_controls"]


def test_a_model_that_answers_in_channels_is_refused_by_name(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(CHANNELS, ("<|return|>", "<|start|>", "<|channel|>", "<|message|>", "<|end|>"))
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(
        ArtifactError, match=rf"artifact {tmp_path}: the chat template writes answers in channels"
    ):
        Prompt.load(tmp_path)


def test_what_was_found_in_a_template_is_said_in_a_line_each() -> None:
    case = CASES["another one behind calls"]
    ends, call, thinks = Prompt(tokenizer_of(case.template, case.controls)).described()
    assert ends == "the template ends answers with <|eot_id|> and <|eom_id|>"
    assert call == 'the template lays out functions; a call begins with {"name": "NAME", "parameters":'
    assert thinks == "it does not think"
    case = CASES["none"]
    ends, call, _ = Prompt(tokenizer_of(case.template, case.controls)).described()
    assert ends == "the template ends answers with nothing"
    assert call.startswith("functions are written as text; a call begins with <tool_call> ")

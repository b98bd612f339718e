"""The Llama 3.2 template that trl ships, over a small tokenizer with Llama's control tokens.

The real tokenizer may not be stored here; docs/log.md has the check against it.
"""

from pathlib import Path

import pytest
import trl
from transformers import PreTrainedTokenizerFast

from trainer.data.chat_template import DATE
from trainer.data.conversation import Conversation, Message, Role
from trainer.data.tokenize import IGNORED, ChatTokenizer

BEGIN, END = "<|begin_of_text|>", "<|eot_id|>"
HEADERS = ["<|start_header_id|>", "<|end_header_id|>"]
SYSTEM: tuple[Role, str] = ("system", "Be kind.")
TURNS: list[tuple[Role, str]] = [
    ("user", " one\n"),
    ("assistant", "  first\n\n"),
    ("user", "two"),
    ("assistant", "naïve 😀"),
]


@pytest.fixture
def llama(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Byte-level; every text it encodes by itself begins with BEGIN, as Llama's does."""
    from tokenizers import Tokenizer, processors

    inner = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    inner.add_special_tokens([BEGIN, END, *HEADERS])
    inner.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, inner.token_to_id(BEGIN))]
    )
    made = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=BEGIN, eos_token=END)
    made.chat_template = (Path(trl.__file__).parent / "chat_templates" / "llama3_2.jinja").read_text()
    return made


def conversation(*turns: tuple[Role, str]) -> Conversation:
    return Conversation(tuple(Message(role, text) for role, text in turns), "s")


@pytest.mark.parametrize("turns", [TURNS[:2], TURNS, [SYSTEM, *TURNS]], ids=["one", "multi", "system"])
def test_ids_are_those_of_llamas_own_template(
    llama: PreTrainedTokenizerFast, turns: list[tuple[Role, str]]
) -> None:
    chat = ChatTokenizer(llama)
    messages = [{"role": role, "content": text} for role, text in turns]
    row = chat.row(conversation(*turns))
    assert row.input_ids == llama.apply_chat_template(messages, date_string=DATE, return_dict=False)
    assert row.input_ids.count(llama.bos_token_id) == 1
    assert f"Today Date: {DATE}" in llama.decode(row.input_ids)
    assert chat.prompt_ids([Message(role, text) for role, text in turns[:-1]]) == (
        llama.apply_chat_template(
            messages[:-1], date_string=DATE, add_generation_prompt=True, return_dict=False
        )
    )


def test_labels_are_the_trimmed_answers_with_their_end_of_turn(llama: PreTrainedTokenizerFast) -> None:
    row = ChatTokenizer(llama).row(conversation(SYSTEM, *TURNS))
    learned = [label for label in row.labels if label != IGNORED]
    assert llama.decode(learned) == f"first{END}naïve 😀{END}"


@pytest.mark.parametrize("control", [BEGIN, END, *HEADERS])
def test_llamas_control_tokens_in_a_text_stay_text(llama: PreTrainedTokenizerFast, control: str) -> None:
    chat = ChatTokenizer(llama)
    plain = chat.row(conversation(("user", "x"), ("assistant", "y")))
    attack = chat.row(conversation(("user", f"x{control}"), ("assistant", f"{control}y")))
    token = llama.convert_tokens_to_ids(control)
    assert attack.input_ids.count(token) == plain.input_ids.count(token)
    learned = [label for label in attack.labels if label != IGNORED]
    assert llama.decode(learned) == f"{control}y{END}" and learned[-1] == llama.eos_token_id

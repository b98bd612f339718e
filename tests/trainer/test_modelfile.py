"""Ollama's Modelfile: what its Go template renders is what the chat template renders, or there is none."""

import importlib.resources
import re
from collections.abc import Sequence
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models
from transformers import PreTrainedTokenizerFast

from tests.support.gguf_models import TURNS, tokenizer_of
from tests.support.go_template import GoError, ollama_values, render
from trainer.data.chat_template import DATE
from trainer.errors import ArtifactError
from trainer.ship.modelfile import go_template, modelfile

SYSTEM = "Be brief, 'please'.\nAlways {{ .Content }}."
MORE = ["Why?", "Because.\n\nOr so.", "And?", "No.", "Oh?"]
QUESTION = {"role": "user", "content": "x"}
CONVERSATIONS: dict[str, list[tuple[str, str]]] = {
    "question": [("user", 'Why "so"?\n\nTell me.')],
    "system": [("system", SYSTEM), ("user", "Why?")],
    "turns": list(zip(("user", "assistant") * 3, MORE, strict=False)),
    "system and turns": [("system", SYSTEM), *zip(("user", "assistant") * 3, MORE, strict=False)],
}
# Like Mistral 7B's: the system prompt is in front of the last question, an answer has no header.
MISTRAL = (
    "{% if messages[0].role == 'system' %}{% set system, said = messages[0].content, messages[1:] %}"
    "{% else %}{% set system, said = '', messages %}{% endif %}{{ bos_token }}"
    "{% for m in said %}{% if m.role == 'user' %}"
    "{{ '[INST] ' + (system + '\n\n' if system and loop.last else '') + m.content + '[/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
# Like SmolLM2's and SmolLM3's: a system prompt of its own where there is none, and thinking left out.
SMOLLM = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nBe a helper.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' }}{% endif %}"
)
# Like Granite 3's: its own system prompt has a date.
GRANITE = (
    "{% if messages[0].role != 'system' %}{{ '<|start_of_role|>system<|end_of_role|>Knowledge: "
    "April 2024.\nYou are an assistant.<|end_of_text|>\n' }}{% endif %}{% for m in messages %}"
    "{{ '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + '<|end_of_text|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"
)
FROM_TRL = ("llama3", "llama3_1", "llama3_2", "phi3", "phi3_5", "qwen2_5", "qwen3", "gemma", "gemma3")
OF_FAMILIES = {"mistral": MISTRAL, "smollm": SMOLLM, "granite": GRANITE}


def tokenizer_for(template: str) -> PreTrainedTokenizerFast:
    """A tokenizer whose control tokens are all that a template writes in angle or square brackets."""
    marks = [*re.findall(r"<\|?\w+\|?>|\[/?INST\]", template), "<s>", "</s>", "<|eot_id|>", "<|im_end|>"]
    inner = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    inner.add_special_tokens([AddedToken(mark, special=True) for mark in dict.fromkeys(marks)])
    made: PreTrainedTokenizerFast = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>"
    )
    made.chat_template = template
    return made


def template_of(name: str) -> str:
    if name in OF_FAMILIES:
        return OF_FAMILIES[name]
    return (importlib.resources.files("trl") / "chat_templates" / f"{name}.jinja").read_text()


def wanted(tokenizer: Any, said: Sequence[tuple[str, str]]) -> str:
    """What the chat template renders, with the system prompt in the first question where it has no place."""
    messages = [{"role": role, "content": content} for role, content in said]

    def rendered(turns: list[dict[str, str]]) -> str:
        return str(
            tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, date_string=DATE)
        )

    try:
        return rendered(messages)
    except Exception:
        system, question, *others = messages
        return rendered([{**question, "content": f"{system['content']}\n\n{question['content']}"}, *others])


@pytest.mark.parametrize("name", [*FROM_TRL, *OF_FAMILIES])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_the_go_template_renders_what_the_chat_template_renders(name: str, conversation: str) -> None:
    tokenizer, said = tokenizer_for(template_of(name)), CONVERSATIONS[conversation]
    messages = [{"role": role, "content": content} for role, content in said]
    assert render(go_template(tokenizer), ollama_values(messages)) == wanted(tokenizer, said)


@pytest.mark.parametrize("turns", TURNS)
def test_a_bos_that_the_tokenizer_does_not_add_is_written(turns: str) -> None:
    rendered = render(go_template(tokenizer_of("gpt-2", turns)), ollama_values([QUESTION]))
    assert rendered.startswith("<s>") and rendered.count("<s>") == 1


def test_a_bos_that_the_tokenizer_adds_itself_is_left_to_it(llama3_tokenizer: Any) -> None:
    assert "<|begin_of_text|>" not in go_template(llama3_tokenizer)


def test_llama_3_keeps_its_dates_with_a_system_prompt_and_without(llama3_tokenizer: Any) -> None:
    template = go_template(llama3_tokenizer)
    for said in CONVERSATIONS.values():
        messages = [{"role": role, "content": content} for role, content in said]
        assert "Today Date: 26 Jul 2024\n\n" in render(template, ollama_values(messages))


EACH = "{% for m in messages %}"
REFUSED = {
    "numbered": (EACH + "{{ loop.index ~ m.content + '<|eot_id|>' }}{% endfor %}", "it renders"),
    "last two only": (
        "{% for m in messages[-2:] %}{{ m.role + m.content + '<|eot_id|>' }}{% endfor %}",
        "leaves out a message",
    ),
    "counted": (
        EACH + "{{ m.role + ': ' + m.content + '<|eot_id|>' }}{% endfor %}{{ messages|length }}",
        "it renders",
    ),
    "upper case": (
        EACH + "{{ '<|im_end|>' + m.role + m.content|upper + '<|eot_id|>' }}{% endfor %}",
        "leaves out|it renders",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_chat_template_of_another_shape_is_refused(name: str) -> None:
    template, said = REFUSED[name]
    with pytest.raises(ArtifactError, match=said):
        go_template(tokenizer_for(template))


def test_quotes_that_would_end_the_template_are_refused() -> None:
    tokenizer = tokenizer_for("{% for m in messages %}{{ '\"\"\"' + m.content + '<|eot_id|>' }}{% endfor %}")
    with pytest.raises(ArtifactError, match="quotes that a Modelfile cannot hold"):
        modelfile(tokenizer, "x.gguf", ["<|eot_id|>"], "mit")


def test_each_end_token_is_a_stop_of_the_modelfile(chatml_tokenizer: Any) -> None:
    text = modelfile(chatml_tokenizer, "x.gguf", ["<|im_end|>", "<|endoftext|>"], "mit")
    assert 'PARAMETER stop "<|im_end|>"\nPARAMETER stop "<|endoftext|>"\n' in text


@pytest.mark.parametrize(
    "template",
    [
        "{{ .Nothing }}",
        "{{ if .System }}",
        "{{ end }}",
        "{{ shout .System }}",
        "{{ $x = .System }}",
        "{{ .Messages }}",
    ],
)
def test_the_interpreter_refuses_what_go_refuses(template: str) -> None:
    with pytest.raises(GoError):
        render(template, ollama_values([{"role": "user", "content": "x"}]))


def test_the_interpreter_trims_ranges_and_compares_as_go_does() -> None:
    template = (
        "{{- range $i, $m := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}\n  {{- .Role }}"
        '={{ $m.Content -}}  {{ if and $last (ne .Role "user") }}!'
        "{{ else if $last }}?{{ else }};{{ end }}{{ end }}"
    )
    said = [("user", "a"), ("user", "b"), ("assistant", "c")]
    values = ollama_values([{"role": role, "content": content} for role, content in said])
    assert render(template, values) == "user=a\n\nb;assistant=c!"

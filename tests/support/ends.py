"""What trainer and API must both find: what ends an answer, in templates in the manners of families."""

from collections.abc import Sequence
from typing import NamedTuple

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

_LOOP = "{% for m in messages %}"
_CALLS = (
    '{% for c in m.tool_calls or [] %}{"name": "{{ c.function.name }}", '
    '"parameters": {{ c.function.arguments | tojson }}}{% endfor %}'
)


def _turns(header: str, end: str, last: str = "") -> str:
    """Return a template with this header of a turn, in which ROLE stands for the role, and this end."""
    begin, _, behind = header.partition("ROLE")
    answer = header.replace("ROLE", "assistant")
    prompt = f"{{% if add_generation_prompt %}}{{{{ '{answer}' }}}}{{% else %}}{last}{{% endif %}}"
    return f"{_LOOP}{{{{ '{begin}' + m.role + '{behind}' + m.content + '{end}' }}}}{{% endfor %}}{prompt}"


class Case(NamedTuple):
    """controls: control tokens of the tokenizer; the first is its eos token. ids, texts: what ends answers.

    learned: what a row is trained on behind the text of its last answer.
    """

    template: str
    controls: tuple[str, ...]
    ids: tuple[str, ...]
    texts: tuple[str, ...] = ()
    learned: str = ""


CASES: dict[str, Case] = {
    "ChatML": Case(
        _turns("<|im_start|>ROLE\\n", "<|im_end|>\\n"),
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        ("<|im_end|>",),
    ),
    "Llama's": Case(
        _turns("<|start_header_id|>ROLE<|end_header_id|>\\n\\n", "<|eot_id|>"),
        ("<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        ("<|eot_id|>",),
    ),
    "Mistral's": Case(
        f"{_LOOP}{{% if m.role == 'user' %}}[INST] {{{{ m.content }}}}[/INST]{{% else %}}"
        " {{ m.content }}</s>{% endif %}{% endfor %}",
        ("</s>", "[INST]", "[/INST]"),
        ("</s>",),
    ),
    "Gemma's": Case(
        _turns("<start_of_turn>ROLE\\n", "<end_of_turn>\\n"),
        ("<eos>", "<start_of_turn>", "<end_of_turn>"),
        ("<end_of_turn>",),
    ),
    "Phi's, with an end of text behind the last": Case(
        _turns("<|ROLE|>\\n", "<|end|>\\n", last="<|endoftext|>"),
        ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"),
        ("<|end|>",),
        learned="<|end|>\n<|endoftext|>",
    ),
    "Granite's": Case(
        _turns("<|start_of_role|>ROLE<|end_of_role|>", "<|end_of_text|>\\n"),
        ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"),
        ("<|end_of_text|>",),
    ),
    "Cohere's, with two": Case(
        _turns("<|START|><|ROLE|>", "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"),
        ("<EOS>", "<|START|>", "<|END_RESPONSE|>", "<|END_OF_TURN_TOKEN|>"),
        ("<|END_RESPONSE|>", "<|END_OF_TURN_TOKEN|>"),
        learned="<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
    ),
    "DeepSeek's": Case(
        _turns("<｜ROLE｜>", "<｜end▁of▁sentence｜>"),
        ("<｜end▁of▁sentence｜>", "<｜user｜>", "<｜assistant｜>"),
        ("<｜end▁of▁sentence｜>",),
    ),
    "another one behind calls": Case(
        "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
        f"{_LOOP}{{{{ '<|im_start|>' + m.role + '\\n' + m.content }}}}{_CALLS}"
        "{{ '<|eom_id|>' if m.tool_calls else '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        ("<|end_of_text|>", "<|im_start|>", "<|eot_id|>", "<|eom_id|>"),
        ("<|eot_id|>", "<|eom_id|>"),
        learned="<|eot_id|>",
    ),
    "ChatML for a tokenizer that does not know it": Case(
        _turns("<|im_start|>ROLE\\n", "<|im_end|>\\n"), ("</s>",), (), ("<|im_end|>",)
    ),
    "none": Case(_turns("ROLE: ", "\\n"), ("</s>",), ()),
}
CHANNELS = (
    f"{_LOOP}{{{{ '<|start|>' + m.role }}}}{{% if m.role == 'assistant' %}}<|channel|>final{{% endif %}}"
    "<|message|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)


def tokenizer_of(template: str, controls: Sequence[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens are bytes and these control tokens, the first its eos token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<pad>", *controls])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token=controls[0], pad_token="<pad>", chat_template=template,
        extra_special_tokens=list(controls[1:]),
    )  # fmt: skip

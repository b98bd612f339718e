"""What trainer and API must both render: templates of ours, conversations, and their prompts as text."""

import re
from typing import Literal

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

# Like Qwen3's: thinking is written in the answer after the last question, and nowhere before.
THINKING = (
    "{% set last = namespace(question=0) %}"
    "{% for m in messages %}"
    "{% if m.role == 'user' %}{% set last.question = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% set content = m.content %}{% set thoughts = m.reasoning_content or '' %}"
    "{% if '</think>' in content %}"
    "{% set thoughts = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if m.role == 'assistant' and loop.index0 > last.question %}"
    "{{ '<think>\n' + thoughts + '\n</think>\n\n' }}{% endif %}"
    "{{ content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Like Gemma 2's: no system prompt, and roles take turns.
STRICT = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

HISTORY: list[tuple[Literal["user", "assistant"], str]] = [
    ("user", "What colour is the kite?"),
    ("assistant", "<think>\nA kite.\n</think>\n\nBlue."),
    ("user", "And <|im_end|>?"),
    ("assistant", "\nShort."),
]
# The prompt of `q` under this system prompt, where the template has no place for one.
SYSTEM = "Be <|im_end|> brief."
SYSTEM_IN_QUESTION = "<|im_start|>user\nBe <|im_end|> brief.\n\nq<|im_end|>\n<|im_start|>assistant\n"
# Two questions in a row, and the prompt that a strict template makes of them.
TWO_QUESTIONS = ("A <|im_end|> kite.", "r")
ONE_QUESTION = "<|im_start|>user\nA <|im_end|> kite.\n\nr<|im_end|>\n<|im_start|>assistant\n"
# Writes the thinking of every answer.
KEEPING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.thinking %}{{ '<think>\n' + m.thinking + '\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THOUGHT = "A <|im_end|> kite."
# The prompt of the second answer of `q, a, r, b`, where `a` has this thinking in a field.
AFTER_THOUGHT = (
    "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    "<think>\nA <|im_end|> kite.\n</think>\n\na<|im_end|>\n"
    "<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\n"
)
# By template: the prompts of the two answers of HISTORY.
PROMPTS = {
    THINKING: [
        "<|im_start|>user\nWhat colour is the kite?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\nWhat colour is the kite?<|im_end|>\n<|im_start|>assistant\nBlue.<|im_end|>\n"
        "<|im_start|>user\nAnd <|im_end|>?<|im_end|>\n<|im_start|>assistant\n",
    ],
    STRICT: [
        "<|im_start|>user\nWhat colour is the kite?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\nWhat colour is the kite?<|im_end|>\n<|im_start|>assistant\n"
        "<think>\nA kite.\n</think>\n\nBlue.<|im_end|>\n"
        "<|im_start|>user\nAnd <|im_end|>?<|im_end|>\n<|im_start|>assistant\n",
    ],
}


def tokenizer(template: str) -> PreTrainedTokenizerFast:
    """Bytes as tokens, with two pairs that are one token wherever they stand side by side."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ċ", "Ċ"), (">", "?")]
    vocab = {token: i for i, token in enumerate([*alphabet, *map("".join, merges)])}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|im_end|>", chat_template=template
    )


def tokens(prompt: str) -> list[str]:
    """The tokens of one of PROMPTS. A template's own end of a turn comes before a line break."""
    return re.findall(r"<\|im_start\|>|<\|im_end\|>(?=\n)|\n\n|>\?|.|\n", prompt)

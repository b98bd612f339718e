"""Write Ollama's Modelfile for a GGUF file: the chat template in Go's form, and where answers stop.

Ollama does not run Jinja. This module renders a conversation of markers with the chat template and reads
the Go form from the text between the markers. It can translate any template whose turns consist of a header
with the role, the text, and an end, such as ChatML and Llama 3, and refuses others.
"""

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from trainer.data.chat_template import DATE
from trainer.errors import ArtifactError
from trainer.ship.gguf_tokenizer import adds_bos
from trainer.ship.stops import end_of_turn

_SYSTEM, _USER, _ANSWER, _NEXT = (f"\ufdd0{letter}\ufdd1" for letter in "saun")


def modelfile(tokenizer: Any, gguf_name: str, stops: Sequence[str], licence: str) -> str:
    """Return the text of the Modelfile. Raises: ArtifactError if the chat template has another shape."""
    parameters = "".join(f'PARAMETER stop "{stop}"\n' for stop in stops)
    template = go_template(tokenizer)
    return f'FROM ./{gguf_name}\nTEMPLATE """{template}"""\n{parameters}LICENSE """{licence}"""\n'


def go_template(tokenizer: Any) -> str:
    """Return the chat template for Go's text/template, without the BOS that the tokenizer itself adds."""
    system, user, answer, following = (
        {"role": role, "content": text}
        for role, text in (
            ("system", _SYSTEM), ("user", _USER), ("assistant", _ANSWER), ("user", _NEXT),
        )
    )  # fmt: skip
    whole = _render(tokenizer, [system, user, answer, following])
    opening, after_system, before_answer, before_next, ending = _between(
        whole, (_SYSTEM, _USER, _ANSWER, _NEXT)
    )
    opening_without_system, *_ = _between(_render(tokenizer, [user]), (_USER,))
    turn_end = end_of_turn(tokenizer)
    behind = before_answer.removeprefix(turn_end)
    end = turn_end + behind[: len(behind) - len(behind.lstrip())]
    answer_header, user_header = before_answer.removeprefix(end), before_next.removeprefix(end)
    default = opening_without_system.removesuffix(user_header)
    fits = (
        user_header.replace("user", "assistant") == answer_header
        and before_answer == ending == end + answer_header
        and after_system == end + user_header
        and default + user_header == opening_without_system
    )
    if not fits:
        raise ArtifactError(
            "the chat template is not made of a header, a text and an end for every turn, so it cannot be "
            "written for Ollama; export to fp8 instead"
        )
    header = user_header.replace("user", "{{ .Role }}")
    return (
        f"{{{{ if .System }}}}{opening}{{{{ .System }}}}{end}{{{{ else }}}}{default}{{{{ end }}}}"
        '{{ range .Messages }}{{ if ne .Role "system" }}'
        f"{header}{{{{ .Content }}}}{end}"
        f"{{{{ end }}}}{{{{ end }}}}{answer_header}"
    )


def _render(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    try:
        text = str(
            tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, date_string=DATE
            )
        )
    except TemplateError as error:
        raise ArtifactError(
            f"the chat template refuses a system prompt ({error}), so it cannot be written for Ollama; "
            "export to fp8 instead"
        ) from None
    return text.removeprefix(tokenizer.bos_token) if adds_bos(tokenizer) else text


def _between(text: str, marks: Sequence[str]) -> list[str]:
    """Return the pieces of `text` around `marks`, in order. Raises: ArtifactError if a mark is missing."""
    pieces = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found:
            raise ArtifactError("the chat template leaves out a turn, so it cannot be written for Ollama")
        pieces.append(before)
    return [*pieces, text]

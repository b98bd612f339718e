"""Write Ollama's Modelfile for a GGUF file: the chat template in Go's form, and where answers stop.

Ollama does not run Jinja. This module renders marked conversations with the chat template and reads from them
what is written before and after each text. The result is held against the chat template on more
conversations. A template that is not made of such turns is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from trainer.data.chat_template import DATE
from trainer.data.template_traits import shared
from trainer.errors import ArtifactError
from trainer.ship.gguf_tokenizer import adds_bos
from trainer.ship.stops import end_of_turn

_SYSTEM, _USER, _ANSWER, _NEXT = (f"\ufdd0{letter}\ufdd1" for letter in "saun")
_JOINT = "\n\n"  # as in training, where the template has no place for a system prompt
Message = dict[str, str]
SAMPLES: tuple[tuple[str, ...], ...] = (  # texts of a system prompt, or none, and of questions and answers
    ("", "Two lines.\n\nOf {{ .text }}, and 'quotes'."),
    ("Be short.\nAlways.", "Why?"),
    ("", "One?", "1", "Two?"),
    ("Count.", "One?", "1", "Two?", "2\n\nor so", "Three?"),
)


@dataclass(frozen=True, slots=True)
class Turns:
    """What a chat template writes before and after each text.

    default: in front of everything if there is no system prompt. system: around one. place: where it is: in a
    block of its own, or in front of the first or last question, with system[1] between. prompt: behind all.
    """

    default: str
    system: tuple[str, str]
    place: Literal["own", "first", "last"]
    user: tuple[str, str]
    answer: tuple[str, str]
    prompt: str

    def render(self, messages: Sequence[Message]) -> str:
        """Return what `go` renders for a conversation."""
        system = "".join(m["content"] for m in messages if m["role"] == "system")
        turns = [m for m in messages if m["role"] != "system"]
        text = system.join(self.system) if system and self.place == "own" else self.default
        moved = {"own": -1, "first": 0, "last": len(turns) - 1}[self.place] if system else -1
        for number, message in enumerate(turns):
            before, after = self.user if message["role"] == "user" else self.answer
            content = system + self.system[1] if number == moved else ""
            text += before + content + message["content"] + after
        return text + self.prompt

    def go(self) -> str:
        """Return the template for Go's text/template, with the values that Ollama gives it."""
        default, prompt = _literal(self.default), _literal(self.prompt)
        (u0, u1), (a0, a1), (s0, s1) = (
            tuple(map(_literal, p)) for p in (self.user, self.answer, self.system)
        )
        other = f"{{{{ else }}}}{default}" if default else ""
        opening, loop, question = {
            "own": (f"{{{{ if .System }}}}{s0}{{{{ .System }}}}{s1}{other}{{{{ end }}}}", "", ""),
            "first": (
                f"{{{{ $system := .System }}}}{default}",
                "",
                f'{{{{ if $system }}}}{{{{ $system }}}}{s1}{{{{ $system = "" }}}}{{{{ end }}}}',
            ),
            "last": (
                default,
                "$i, $m := ",
                "{{ if and $.System (eq (len (slice $.Messages $i)) 1) }}"
                f"{{{{ $.System }}}}{s1}{{{{ end }}}}",
            ),
        }[self.place]
        return (
            f"{opening}{{{{ range {loop}.Messages }}}}"
            f'{{{{ if eq .Role "user" }}}}{u0}{question}{{{{ .Content }}}}{u1}'
            f'{{{{ else if eq .Role "assistant" }}}}{a0}{{{{ .Content }}}}{a1}{{{{ end }}}}'
            f"{{{{ end }}}}{prompt}"
        )


def modelfile(tokenizer: Any, gguf_name: str, stops: Sequence[str], licence: str) -> str:
    """Return the text of the Modelfile. Raises: ArtifactError if it cannot say the chat template."""
    template = go_template(tokenizer)
    if '"""' in template or template.endswith('"') or any('"' in stop for stop in stops):
        raise ArtifactError("the chat template or an end token has quotes that a Modelfile cannot hold")
    parameters = "".join(f'PARAMETER stop "{stop}"\n' for stop in stops)
    return f'FROM ./{gguf_name}\nTEMPLATE """{template}"""\n{parameters}LICENSE """{licence}"""\n'


def go_template(tokenizer: Any) -> str:
    """Return the chat template for Go's text/template, without the BOS that the tokenizer itself adds."""
    return turns_of(tokenizer).go()


def turns_of(tokenizer: Any) -> Turns:
    """Return what the chat template writes around texts. Raises: ArtifactError if it is not made of turns."""
    user, answer, following = _message("user", _USER), _message("assistant", _ANSWER), _message("user", _NEXT)
    opening, middle, between, ending = _around(
        _render(tokenizer, [user, answer, following]), (_USER, _ANSWER, _NEXT)
    )
    end = end_of_turn(tokenizer)
    head, found, tail = between.partition(end)
    answer_end = head + found + tail[: len(tail) - len(tail.lstrip())] if found else ""
    user_header = between.removeprefix(answer_end)
    user_end = middle[: shared(middle, ending)]
    if answer_end and user_end.startswith(answer_end):
        user_end = answer_end
    turns = _with_system(
        tokenizer,
        Turns(
            default=opening.removesuffix(user_header),
            system=("", _JOINT),
            place="first",
            user=(user_header, user_end),
            answer=(middle.removeprefix(user_end), answer_end),
            prompt=ending.removeprefix(user_end),
        ),
    )
    for texts in SAMPLES:
        roles = ("system", *("user", "assistant") * len(texts))
        said = [_message(role, text) for role, text in zip(roles, texts, strict=False) if text]
        wanted = _render(tokenizer, said if _takes_system(tokenizer) else _moved(said))
        if turns.render(said) != wanted:
            raise ArtifactError(
                "the chat template is not made of a text before and after each message, so a Modelfile "
                f"cannot hold it: it renders {_difference(wanted, turns.render(said))}"
            )
    return turns


def _with_system(tokenizer: Any, turns: Turns) -> Turns:
    """Return the turns with what the template writes around a system prompt, and where."""
    if not _takes_system(tokenizer):
        return turns
    said = [("system", _SYSTEM), ("user", _USER), ("assistant", _ANSWER), ("user", _NEXT)]
    whole = _render(tokenizer, [_message(*pair) for pair in said])
    if whole.find(_SYSTEM) > whole.find(_ANSWER):
        *_, joint, _ = _around(whole, (_USER, _ANSWER, _SYSTEM, _NEXT))
        return replace(turns, place="last", system=("", joint))
    before, after, *_ = _around(whole, (_SYSTEM, _USER, _ANSWER, _NEXT))
    if before == turns.default + turns.user[0]:
        return replace(turns, place="first", system=("", after))
    return replace(turns, place="own", system=(before, after.removesuffix(turns.user[0])))


def _takes_system(tokenizer: Any) -> bool:
    """Whether the chat template has a place for a system prompt."""
    try:
        return _SYSTEM in _render(tokenizer, [_message("system", _SYSTEM), _message("user", "x")])
    except ArtifactError:
        return False


def _moved(messages: list[Message]) -> list[Message]:
    """Return the messages with the system prompt in the first question, as in training."""
    if messages[0]["role"] != "system":
        return messages
    system, question, *others = messages
    return [_message("user", system["content"] + _JOINT + question["content"]), *others]


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _render(tokenizer: Any, messages: list[Message]) -> str:
    try:
        text = str(
            tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, date_string=DATE
            )
        )
    except Exception as error:  # a template is a program: it may raise anything
        raise ArtifactError(f"the chat template refuses a conversation ({error})") from None
    return text.removeprefix(tokenizer.bos_token) if adds_bos(tokenizer) else text


def _around(text: str, marks: Sequence[str]) -> list[str]:
    """Return the pieces of `text` around `marks`, in order. Raises: ArtifactError if a mark is missing."""
    pieces = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found:
            raise ArtifactError(
                "the chat template leaves out a message or moves it, so a Modelfile cannot hold it"
            )
        pieces.append(before)
    return [*pieces, text]


def _difference(wanted: str, found: str) -> str:
    at = shared(wanted, found)
    return f"{wanted[at : at + 60]!r} where turns would be {found[at : at + 60]!r}"


def _literal(text: str) -> str:
    """Return a text as a Go template writes it."""
    return text.replace("{{", '{{ "{{" }}')

"""Find how a chat template ends answers and writes functions and calls, and prepare turns for it.

trainer/data/template_form.py and api/engine/template_form.py are the same text, which a test compares: what
is trained is what the API shows the model, where it ends an answer, and what it reads as calls. The template
is tried with names that nobody can guess. No model's name decides.
"""

import json
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal, NamedTuple

Turn = dict[str, Any]  # role, content, calls, as chat templates take them
Render = Callable[[list[Turn], list[Turn], bool], str]  # turns, tools, and whether an answer begins

_MAX_DEPTH = 64
_MAX_END = 40  # characters of a text that ends an answer
_NO_ARGUMENTS = {"type": "object", "properties": {}}


class Ends(NamedTuple):
    """The marks that end an answer. texts: marks of several tokens without a control token."""

    ids: tuple[int, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Written:
    """How an answer has a call: `begin`, the name, `middle`, the arguments, `tail`.

    style: `json`: the arguments are a JSON object. `tags`: each one is `key`, its name, `value`, its text,
    and `after`. `python`: they are Python's, `name='text', other=1`. again: what a further call begins with;
    the same as `begin`, or the end of it. end: the end of a turn of calls.
    """

    style: Literal["json", "tags", "python"]
    begin: str
    middle: str
    tail: str
    again: str
    key: str = ""
    value: str = ""
    after: str = ""
    end: str = ""


@dataclass(frozen=True, slots=True)
class ToolForm:
    """How a template takes functions and calls, and how it writes them.

    as_text: it takes arguments as JSON text, not as an object. with_ids: it needs calls with ids. empty: the
    content of an answer that is nothing but calls. keeps_text: it writes text beside calls. fills: it needs
    the description and the parameters of every function.
    """

    written: Written
    as_text: bool = False
    with_ids: bool = False
    empty: str | None = ""
    keeps_text: bool = False
    fills: bool = False

    def offered(self, tool: Turn) -> Turn:
        """Return a function, in OpenAI's form, as the template needs it."""
        if not self.fills:
            return tool
        function = tool["function"]
        return {**tool, "function": {"description": "", "parameters": _NO_ARGUMENTS, **function}}

    def laid_out(self, turns: Sequence[Turn]) -> list[Turn]:
        """Return turns, in OpenAI's form, as the template takes them.

        Calls are numbered through the conversation: their ids in a file or from a client are left out.
        """
        made: list[Turn] = []
        ids: dict[str, str] = {}
        waiting: list[str] = []
        for turn in turns:
            turn = dict(turn)
            if calls := turn.get("tool_calls"):
                numbers = [f"{number:09d}" for number in range(len(ids), len(ids) + len(calls))]
                for call, number in zip(calls, numbers, strict=True):
                    ids[call.get("id") or number] = number
                waiting = numbers
                turn["tool_calls"] = [self._call(*pair) for pair in zip(calls, numbers, strict=True)]
                turn["content"] = (turn["content"] if self.keeps_text else "") or self.empty
            elif turn["role"] == "tool":
                number = ids.get(turn.pop("tool_call_id", None) or "", waiting[0] if waiting else "0" * 9)
                waiting = [other for other in waiting if other != number]
                turn |= {"tool_call_id": number} if self.with_ids else {}
            made.append(turn)
        return made

    def _call(self, call: Turn, number: str) -> Turn:
        function = call["function"]
        arguments = _arguments(function["arguments"])
        if self.as_text and not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        made = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
        return {**made, "id": number} if self.with_ids else made


def ends_of(tokenizer: Any, render: Render, form: ToolForm | None) -> Ends:
    """Return what a chat template puts behind answers of text and of calls; nothing if that ends no answer.

    tokenizer: a Hugging Face tokenizer. form: how the template writes calls, if it does.
    Raises: what the template raises if it refuses a question and its answer.
    """
    added = tokenizer.added_tokens_decoder
    ids: list[int] = []
    texts = []
    for end in filter(None, (_turn_end(render), form.written.end if form else "")):
        own = tokenizer(end, add_special_tokens=False)["input_ids"]
        controls = [id for id in own if id in added and added[id].special]
        if controls or len(own) == 1:
            ids += controls or own
        elif 1 < len(end) <= _MAX_END and not end.isalnum():
            texts.append(end)
    return Ends(tuple(dict.fromkeys(ids)), tuple(dict.fromkeys(texts)))


def in_channels(render: Render) -> bool:
    """Return whether answers are in channels, as in OpenAI's Harmony: their names are written as text."""
    said = f"s{secrets.token_hex(8)}"
    user, answer = {"role": "user", "content": "x"}, {"role": "assistant", "content": said}
    try:
        asked, whole = render([user], [], True), render([user, answer], [], False)
    except Exception:  # whatever an expression of the template raises
        return False
    before = whole[_shared(asked, whole) :].partition(said)[0]
    return re.search(r"<\W*channel\W*>", before) is not None


def _turn_end(render: Render) -> str:
    """Return the mark that the template puts behind an answer, whether a question follows or not."""
    said, asked = f"s{secrets.token_hex(8)}", f"q{secrets.token_hex(8)}"
    turns: list[Turn] = [{"role": "user", "content": "x"}, {"role": "assistant", "content": said}]
    _, found, last = render(turns, [], False).rpartition(said)
    if not found:
        return ""
    try:
        followed = render([*turns, {"role": "user", "content": asked}], [], False)
        both = last[: _mark_start(last, _shared(last, followed.rpartition(said)[2]))]
    except Exception:  # whatever an expression of the template raises
        both = ""
    return next(iter([*both.split(), *last.split()]), "")


def tool_form(render: Render) -> ToolForm | None:
    """Return how a chat template takes and writes calls; None if it leaves any out or has another form."""
    nothing = Written("json", "", "", "", "")
    for empty, with_ids, as_text in product(("", None), (False, True), (False, True)):
        way = ToolForm(nothing, as_text, with_ids, empty)
        try:
            if found := _Trial(render, way).form():
                return found
        except Exception:  # whatever an expression of the template raises
            continue
    return None


class _Trial:
    """Try a template in one way of giving it calls. Its functions raise what the template raises."""

    def __init__(self, render: Render, way: ToolForm) -> None:
        self._render = render
        self._way = way
        marks = [f"{letter}{secrets.token_hex(8)}" for letter in "fgabvwrtu"]
        self._name, self._other, *self._keys = marks[:4]
        self._values, self._result, self._said, asked = marks[4:6], marks[6], marks[7], marks[8]
        properties = {key: {"type": "string", "description": "y"} for key in self._keys}
        schema = {"type": "object", "properties": properties, "required": self._keys}
        self._tools = [_tool(name, description="y", parameters=schema) for name in (self._name, self._other)]
        self._user: Turn = {"role": "user", "content": asked}

    def form(self) -> ToolForm | None:
        way, result = self._way, {"role": "tool", "content": self._result, "tool_call_id": "0"}
        asked = self._render([self._user], self._tools, True)
        whole = self._laid_out([self._calls(self._name), result])
        if self._name not in asked or self._result not in whole or self._reads_ids(result, whole):
            return None
        written = self._written()
        if written is None:
            return None
        keeping = replace(way, written=written, keeps_text=True, fills=self._fills())
        beside = self._laid_out([self._calls(self._name, self._said)], keeping)
        return replace(keeping, keeps_text=self._said in beside and self._values[0] in beside)

    def _reads_ids(self, result: Turn, without: str) -> bool:
        """Return whether the template writes something else for calls with ids."""
        if self._way.with_ids:
            return False
        try:
            way = replace(self._way, with_ids=True)
            return self._laid_out([self._calls(self._name), result], way) != without
        except Exception:  # whatever an expression of the template raises
            return False

    def _laid_out(self, answers: list[Turn], way: ToolForm | None = None) -> str:
        return self._render((way or self._way).laid_out([self._user, *answers]), self._tools, False)

    def _calls(self, *names: str) -> Turn:
        """Return an answer of calls; a last name that is no function's is its text."""
        text = names[-1] if names[-1] == self._said else ""
        arguments = json.dumps(dict(zip(self._keys, self._values, strict=True)))
        calls = [
            {"type": "function", "function": {"name": name, "arguments": arguments}}
            for name in names
            if name != text
        ]
        return {"role": "assistant", "content": text, "tool_calls": calls}

    def _written(self) -> Written | None:
        """Return how the template writes a call, from one call and from two."""
        plain = self._render([self._user, {"role": "assistant", "content": self._said}], self._tools, False)
        alone, behind = _answer(self._laid_out([self._calls(self._name)]), plain, self._said)
        begin, _, rest = alone.partition(self._name)
        end = "".join(behind.split()[:1])
        if not end:  # turns of calls have an end of their own
            end = "".join(re.findall(r"<[^<>\s]+>\s*$", rest)).strip()
            rest = rest.rstrip().removesuffix(end)
        found = self._arguments(begin, rest)
        if found is None or self._name in rest or found.middle.rstrip().endswith("{"):
            return None
        try:
            two, _ = _answer(self._laid_out([self._calls(self._name, self._other)]), plain, self._said)
        except Exception:  # the template takes one call only
            return replace(found, end=end)
        before = two.partition(self._name)[2].partition(self._other)[0]
        again = begin[_mark_start(begin, len(begin) - _shared(begin[::-1], before[::-1])) :]
        return replace(found, end=end, again=again or begin)

    def _arguments(self, begin: str, rest: str) -> Written | None:
        """Return how the arguments are written in what follows the name."""
        (one, two), (first, second) = self._keys, self._values
        as_json = rf'\{{\s*"{one}"\s*:\s*"{first}"\s*,\s*"{two}"\s*:\s*"{second}"\s*\}}'
        if match := re.search(as_json, rest):
            return Written("json", begin, rest[: match.start()], rest[match.end() :], begin)
        parts = re.fullmatch(f"(.*?){one}(.*?){first}(.*?){two}(.*?){second}(.*)", rest, re.DOTALL)
        if parts is None or parts[2] != parts[4]:
            return None
        opened, value, between, tail = parts[1], parts[2], parts[3], parts[5]
        if opened == "(" and value in ("='", '="') and tail.startswith(value[1] + ")") and begin[-1:] == "[":
            return Written("python", begin, "(", tail[1:], begin)
        after = between[: _mark_start(between, _shared(between, tail))]
        key = between[len(after) :]
        if "<" in key and "<" in after and opened.endswith(key) and "<" in tail[len(after) :]:
            middle, tail = opened.removesuffix(key), tail[len(after) :]
            return Written("tags", begin, middle, tail, begin, key, value, after)
        return None

    def _fills(self) -> bool:
        """Return whether the template refuses a function of nothing but a name."""
        try:
            return self._name not in self._render([self._user], [_tool(self._name)], True)
        except Exception:  # whatever an expression of the template raises
            return True


def _tool(name: str, **fields: Any) -> Turn:
    return {"type": "function", "function": {"name": name, **fields}}


def _answer(text: str, plain: str, said: str) -> tuple[str, str]:
    """Return the answer in `text`, and what is behind it. plain: the conversation with the answer `said`."""
    header, _, behind = plain.partition(said)
    begin, end = _shared(header, text), _shared(behind[::-1], text[::-1])
    if begin < len(header):
        begin = _mark_start(text, begin)
    if end < len(behind):  # the two ends may have the end of a mark in common
        cut = text[: len(text) - end]
        inside = cut.rfind("<") > cut.rfind(">")
        end -= text[len(text) - end :].find(">") + 1 if inside else 0
    return text[begin : len(text) - end], text[len(text) - end :]


def _mark_start(text: str, place: int) -> int:
    """Return `place`, or where the mark <...> begins that it cuts."""
    start = text.rfind("<", 0, place)
    return start if start > text.rfind(">", 0, place) else place


def _shared(one: str, other: str) -> int:
    """Return how many characters two texts begin with in common."""
    differ = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differ, min(len(one), len(other)))


def _arguments(text: str) -> Any:
    """Return the arguments of a call as a value, or as they are if they are no JSON, or nested too deep."""
    try:
        level = [value := json.loads(text)]
    except (ValueError, RecursionError):
        return text
    for _ in range(_MAX_DEPTH):
        level = [child for each in level for child in _children(each)]
    return text if level else value


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []

"""Templates show by trial how their models think; thinking is split from an answer however its text comes."""

import json
import sys
from collections.abc import AsyncIterator, Sequence
from types import FrameType
from typing import Any, cast

import numpy as np
import pytest
from llguidance import LLMatcher, LLTokenizer
from transformers import PreTrainedTokenizerFast

from api.engine.delta import Delta
from api.engine.messages import Call, Layout, Message
from api.engine.prompt import Prompt
from api.engine.sampling import Sampling
from api.engine.thinking import Marker, Thinking, Thinks, json_rules
from api.generation.thinking import Splitter, Stops, thought
from tests.support.prompts import THINKING as TRAINED
from tests.support.thinking import (
    ASKED,
    HYBRID,
    OPENED,
    OTHER_MARKERS,
    SWITCHED,
    TAGGED,
    TOLD,
    UNOPENED,
    deltas,
)

HI = [Message("user", "Hi")]
OPENING, CLOSING = Marker("<think>"), Marker("</think>")
INSIDE, BEFORE = (Thinks(OPENING, CLOSING, inside) for inside in (True, False))


def prompt_of(
    tokenizer: PreTrainedTokenizerFast, template: str, *markers: str, special: bool = False
) -> Prompt:
    """markers: that are tokens of their own. special: and control tokens."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str()),
        eos_token="<|im_end|>",
        extra_special_tokens=["<|im_start|>"],
        chat_template=template,
    )
    made.add_tokens(list(markers), special_tokens=special)
    return Prompt(made)


def known(prompt: Prompt) -> tuple[str, str | None, str | None] | None:
    found = prompt.thinking
    return (found.opening.text, found.switch, found.key) if found else None


def how(prompt: Prompt, **layout: Any) -> bool | None:
    """Return whether an answer begins inside its thinking; None if it does not think."""
    found = prompt.begins(prompt.encode(HI, layout=Layout(**layout)))
    return found.inside if found else None


@pytest.mark.parametrize(
    ("template", "expected", "begins"),
    [
        (OPENED, ("<think>", None, None), (True, True, True)),
        (HYBRID, ("<think>", "enable_thinking", "reasoning_content"), (False, False, None)),
        (TAGGED, ("<think>", "enable_thinking", "reasoning_content"), (False, False, None)),
        (SWITCHED, ("<think>", "enable_thinking", "reasoning_content"), (True, True, None)),
        (ASKED, ("<think>", "thinking", None), (None, True, None)),
        (TOLD, ("<think>", "thinking", None), (False, False, False)),
        (UNOPENED, ("<think>", None, None), (False, False, False)),
        (TRAINED, ("<think>", None, "reasoning_content"), (False, False, False)),
        (OTHER_MARKERS, ("[THINK]", None, None), (True, True, True)),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", None, (None, None, None)),
    ],
)  # fmt: skip
def test_a_template_shows_how_its_model_thinks(
    tokenizer: PreTrainedTokenizerFast, template: str, expected: Any, begins: tuple[bool | None, ...]
) -> None:
    """begins: by default, when thinking is asked for, and when it is not wanted."""
    prompt = prompt_of(tokenizer, template)
    assert known(prompt) == expected
    assert tuple(how(prompt, thinking=asked) for asked in (None, True, False)) == begins


def test_what_a_client_writes_does_not_open_or_close_the_thinking(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = prompt_of(tokenizer, HYBRID)
    for text in ("<think>", "x <think>\n", "</think>"):
        found = prompt.begins(prompt.encode([Message("user", text)]))
        assert found is not None and not found.inside


@pytest.mark.parametrize(
    ("begun", "inside"),
    [("<think>\nWell", True), ("<think>\nWell\n</think>\n\nSo", None), ("So", None), (" ", False)],
)
def test_an_answer_that_is_continued_thinks_where_it_was_cut(
    tokenizer: PreTrainedTokenizerFast, begun: str, inside: bool | None
) -> None:
    prompt = prompt_of(tokenizer, HYBRID)
    ids = prompt.encode([*HI, Message("assistant", begun)], layout=Layout(continued=True))
    found = prompt.begins(ids, begun)
    assert (found.inside if found else None) is inside


def test_an_explicit_variable_of_the_template_decides(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = prompt_of(tokenizer, SWITCHED)
    assert how(prompt, thinking=True, values={"enable_thinking": False}) is None


def test_effort_is_given_to_a_template_that_reads_it(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = prompt_of(tokenizer, OPENED + "{{ reasoning_effort }}")
    text = prompt.text(prompt.encode(HI, layout=Layout(effort="low")))
    assert text.endswith("<think>\nlow")
    assert prompt.heeds(Layout(thinking=True, effort="low")) and not prompt.heeds(Layout(thinking=False))


def test_earlier_thinking_is_where_the_template_writes_it(tokenizer: PreTrainedTokenizerFast) -> None:
    called = Message("assistant", "", (Call("c", "f", "{}"),), thinking="Look it up.")
    messages = [*HI, called, Message("tool", "1", call_id="c"), Message("assistant", "So.", thinking="One!")]
    text = prompt_of(tokenizer, HYBRID).text(prompt_of(tokenizer, HYBRID).encode(messages))
    assert (
        "<think>\nLook it up.\n</think>\n\n<tool_call>" in text and "<think>\nOne!\n</think>\n\nSo." in text
    )
    other = prompt_of(tokenizer, HYBRID.replace("m.reasoning_content", "m.thinking"))
    assert other.thinking is not None and other.thinking.key == "thinking"
    assert "<think>\nOne!\n</think>" in other.text(other.encode(messages))
    assert "One!" not in (plain := prompt_of(tokenizer, OPENED)).text(plain.encode(messages))


@pytest.mark.parametrize("special", [False, True])
def test_a_marker_that_is_a_token_is_known_as_one(tokenizer: PreTrainedTokenizerFast, special: bool) -> None:
    found = prompt_of(tokenizer, OPENED, "<think>", "</think>", special=special).thinking
    assert found == Thinking(Marker("<think>", 259, special), Marker("</think>", 260, special))


# An answer as the model writes it: inside the thinking, and with the marker; its thinking and its answer.
ANSWERS = [
    ("One, <b>two</b>.\n</think>\n\n# Hi\n\nYou <think>", "One, <b>two</b>.", "# Hi\n\nYou <think>"),
    ("\n\n</think>\n\nHi", "", "Hi"),
    ("a\n\nb\n</think>  x\n", "a\n\nb", "  x\n"),
    ("a < b </thin </think></think>", "a < b </thin ", "</think>"),
    ("never closed\n", "never closed", ""),
    ("cut in </thi", "cut in </thi", ""),
    ("", "", ""),
]


def split(thinks: Thinks, pieces: Sequence[str]) -> tuple[str, str]:
    splitter = Splitter(thinks.opening.text, thinks.closing.text, thinks.inside)
    found = [*(splitter.feed(piece) for piece in pieces), splitter.end()]
    return "".join(thinking for thinking, _ in found), "".join(answer for _, answer in found)


@pytest.mark.parametrize(("written", "thinking", "answer"), ANSWERS)
@pytest.mark.parametrize(
    ("thinks", "before"), [(INSIDE, ""), (INSIDE, "<think>\n"), (BEFORE, "<think>\n"), (BEFORE, "\n <think>")]
)
def test_thinking_is_split_from_the_answer_wherever_the_pieces_end(
    thinks: Thinks, before: str, written: str, thinking: str, answer: str
) -> None:
    text = before + written
    for size in range(1, len(text) + 2):
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        assert split(thinks, pieces) == (thinking, answer), size
    for place in range(len(text) + 1):
        assert split(thinks, [text[:place], text[place:]]) == (thinking, answer), place


@pytest.mark.parametrize("text", ["Hi <think>a</think>", "<thinking>", "<", "", "  x", "</think>"])
def test_an_answer_without_the_opening_marker_is_all_answer(text: str) -> None:
    for place in range(len(text) + 1):
        assert split(BEFORE, [text[:place], text[place:]]) == ("", text)


def test_thinking_is_passed_on_before_it_ends() -> None:
    splitter = Splitter("<think>", "</think>", inside=True)
    assert [splitter.feed(piece) for piece in ("Well", ", a <", " b\n", "\nc")] == [
        ("Well", ""), (", a ", ""), ("< b", ""), ("\n\nc", "")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("stops", "text", "before", "found"),
    [
        (["END", "D."], "a ENd END.", "a ENd ", "END"),
        (["xyz"], "a xy", "a xy", None),
        (["b", "ab"], "cab", "c", "ab"),
        (["abcd", "bc"], "xabcd", "xa", "bc"),
        (["aab"], "aaab", "a", "aab"),
        (["abab", "abac"], "ababac", "", "abab"),
        (["aaa"], "aabaaa", "aab", "aaa"),
        (["."], "", "", None),
    ],
)
def test_the_stop_string_that_is_complete_first_ends_an_answer(
    stops: list[str], text: str, before: str, found: str | None
) -> None:
    for size in range(1, len(text) + 2):
        finder, said, stop = Stops(stops), "", None
        for piece in (text[start : start + size] for start in range(0, len(text), size)):
            certain, stop = finder.feed(piece)
            said += certain
            if stop:
                break
        assert (said + ("" if stop else finder.end()), stop) == (before, found), size


def test_stop_strings_that_nearly_occur_everywhere_cost_no_more_than_others() -> None:
    def opcodes(stops: list[str]) -> int:
        finder, count = Stops(stops), 0

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal count
            frame.f_trace_opcodes = True
            count += event == "opcode"
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            for _ in range(600):
                finder.feed("a")
        finally:
            sys.settrace(before)
        return count

    assert opcodes(["a" * n + "b" for n in range(200, 216)]) < 2 * opcodes([f"b{n}" for n in range(16)])


async def _some(given: Sequence[Delta], closed: list[bool]) -> AsyncIterator[Delta]:
    try:
        for delta in given:
            yield delta
    finally:
        closed.append(True)


async def read(
    prompt: Prompt,
    thinks: Thinks,
    given: Sequence[Delta],
    sampling: Sampling | None = None,
    shown: bool = True,
) -> list[Any]:
    closed: list[bool] = []
    stream: Any = _some(given, closed)
    found: list[Any] = [
        delta async for delta in thought(stream, thinks, sampling or Sampling(), prompt, shown)
    ]
    assert closed == [True], "the engine stops working on what nobody wants"
    return found


def text_of(prompt: Prompt, rows: Any) -> str:
    return b"".join(prompt.token_bytes(row[0][0]) for row in rows or ()).decode()


@pytest.mark.anyio
@pytest.mark.parametrize("size", range(1, 40))
@pytest.mark.parametrize(("thinks", "before"), [(INSIDE, ""), (BEFORE, "\n<think>")])
async def test_tokens_and_logprobs_are_split_as_the_text_is(
    tokenizer: PreTrainedTokenizerFast, size: int, thinks: Thinks, before: str
) -> None:
    prompt = prompt_of(tokenizer, OPENED)
    thinking, answer = f"{before}Wäll\n</think>\n\n", "Ja! 🙂"
    text = thinking + answer
    given = deltas(tokenizer, [text[start : start + size] for start in range(0, len(text), size)])
    found = await read(prompt, thinks, given)
    assert "".join(delta.thinking for delta in found) == "Wäll"
    assert "".join(delta.text for delta in found) == answer
    assert sum(delta.thinking_tokens for delta in found) == len(thinking.encode())
    assert sum(delta.tokens for delta in found) == len(text.encode()) + 1
    assert "".join(text_of(prompt, delta.logprobs) for delta in found) == answer + "<|im_end|>"


@pytest.mark.anyio
async def test_no_token_of_an_answer_without_thinking_counts_as_thinking(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    prompt = prompt_of(tokenizer, HYBRID)
    found = await read(prompt, BEFORE, deltas(tokenizer, ["<", "b", "> </think>"]))
    assert [delta.text for delta in found] == ["", "<b", "> </think>", ""]
    assert sum(delta.thinking_tokens for delta in found) == 0
    assert "".join(text_of(prompt, delta.logprobs) for delta in found) == "<b> </think><|im_end|>"


@pytest.mark.anyio
async def test_stop_strings_end_the_answer_and_not_the_thinking(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = prompt_of(tokenizer, OPENED)
    text = "A dot. And\n</think>\nYes. No."
    for stop in (".", ["never", "."]):
        found = await read(prompt, INSIDE, deltas(tokenizer, text), Sampling(stop=stop))
        assert "".join(delta.thinking for delta in found) == "A dot. And"
        assert "".join(delta.text for delta in found) == "Yes"
        assert (found[-1].finish_reason, found[-1].stop) == ("stop", ".")
        assert sum(delta.tokens for delta in found) == text.index("Yes.") + 4
    late = await read(prompt, INSIDE, deltas(tokenizer, text), Sampling(stop=".", min_tokens=len(text) - 1))
    assert "".join(delta.text for delta in late) == "Yes. No"


@pytest.mark.anyio
async def test_each_of_several_answers_ends_by_its_own_stop_string(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    prompt = prompt_of(tokenizer, OPENED)
    both = [deltas(tokenizer, f"x</think>{said}", index=index) for index, said in enumerate(("a.b", "ccc."))]
    given = [delta for pair in zip(*both, strict=False) for delta in pair] + both[1][len(both[0]) :]
    found = await read(prompt, INSIDE, given, Sampling(stop=["."], n=2))
    said = ["".join(delta.text for delta in found if delta.index == index) for index in range(2)]
    assert said == ["a", "ccc"]
    assert [delta.index for delta in found if delta.finish_reason] == [0, 1]


@pytest.mark.anyio
async def test_thinking_that_is_not_shown_is_counted(tokenizer: PreTrainedTokenizerFast) -> None:
    given = deltas(tokenizer, "Hm</think>Ja")
    found = await read(prompt_of(tokenizer, OPENED), INSIDE, given, shown=False)
    assert ["".join(getattr(delta, name) for delta in found) for name in ("thinking", "text")] == ["", "Ja"]
    assert sum(delta.thinking_tokens for delta in found) == len("Hm</think>")


SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": [1, 2]}},
    "required": ["a"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("markers", [(), ("<think>", "</think>"), ("[THINK]", "[/THINK]")])
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_a_grammar_holds_for_what_follows_the_thinking(
    tokenizer: PreTrainedTokenizerFast, markers: Sequence[str], special: bool, inside: bool
) -> None:
    template = OTHER_MARKERS if "[THINK]" in markers else OPENED
    prompt = prompt_of(tokenizer, template, *markers, special=special)
    found = cast(Thinking, prompt.thinking)
    thinks = Thinks(found.opening, found.closing, inside)
    library = LLTokenizer(prompt._encode.to_str(), n_vocab=300, eos_token=tokenizer.eos_token_id)
    grammar = LLMatcher.grammar_from_lark(thinks.grammar(json_rules(json.dumps(SCHEMA))))
    assert LLMatcher.validate_grammar(grammar) == "", "vLLM validates it without a tokenizer"
    matcher = LLMatcher(library, grammar, log_level=0)

    def accepts(*parts: str | int | None) -> bool:
        nonlocal matcher
        matcher = LLMatcher(library, grammar, log_level=0)
        ids = [
            library.tokenize_str(part) if isinstance(part, str) else [part]
            for part in parts
            if part is not None
        ]
        return bool(matcher.consume_tokens([id for each in ids for id in each]))

    def may_end() -> bool:
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        return bool(bits[library.eos_token])

    opening = None if inside else found.opening.text if found.opening.id is None else found.opening.id
    closings: list[str | int] = [found.closing.text]
    if found.closing.id is not None:
        closings.append(found.closing.id)
    for closing in closings:
        assert accepts(opening, 'I { "think" </th', closing, '\n\n{"a":2}') and may_end()
        assert accepts(opening, closing, '{"a":1}') and may_end()
        assert not accepts(opening, "Well", closing, "So: ")
        assert not accepts(opening, "Well", closing, '{"a":3')
    assert accepts(opening, "never closed") and not may_end()
    assert accepts('{"a":1}') and may_end() is not inside

"""Requests in the shapes of editors, role plays, agents and desktop programs, read from their sources.

Each is answered, and what changes nothing is named. The second list is refused with the way out.
"""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.support.api import MODEL, FakeEngine, House, assert_openai_error

pytestmark = pytest.mark.anyio
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
USER = {"role": "user", "content": "Hi"}
READ = {"name": "read", "parameters": {"type": "object", "properties": {"path": {"type": "string"}}}}
CALLED = {"id": "call_1", "type": "function", "function": {"name": "read", "arguments": '{"path":"a"}'}}
STOPS = [f"\n{name}:" for name in ("You", "Ann", "Bob", "Cid", "Dee", "System", "### Instruction")]

TAKEN: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "SillyTavern, text of a group chat": (
        COMPLETIONS,
        {"prompt": "Ann: Hi\nBob:", "n": 1, "seed": -1, "stop": STOPS, "temperature": 0.7, "top_p": 1,
         "top_k": 0, "min_p": 0.1, "repetition_penalty": 1, "frequency_penalty": 0, "presence_penalty": 0,
         "min_tokens": 0, "max_tokens": 9, "ignore_eos": False, "early_stopping": False,
         "length_penalty": 1, "use_beam_search": False, "skip_special_tokens": True,
         "spaces_between_special_tokens": True, "include_stop_str_in_output": False, "stream": True},
        {"early_stopping", "length_penalty", "use_beam_search", "skip_special_tokens",
         "spaces_between_special_tokens", "include_stop_str_in_output"},
    ),
    "a generic text client": (
        COMPLETIONS,
        {"prompt": "Hi", "max_tokens": 9, "typical_p": 1.0, "tfs": 1, "top_a": 0, "mirostat_mode": 0,
         "mirostat_tau": 5, "mirostat_eta": 0.1, "rep_pen": 1, "rep_pen_range": 2048, "dry_multiplier": 0,
         "dry_base": 1.75, "xtc_probability": 0.0, "xtc_threshold": 0.1, "smoothing_factor": 0,
         "truncation_length": 8192, "ban_eos_token": False, "add_bos_token": True, "sampler_seed": -1,
         "samplers": [], "custom_token_bans": "", "grammar_string": "", "do_sample": True},
        {"typical_p", "tfs", "top_a", "mirostat_mode", "mirostat_tau", "mirostat_eta", "rep_pen",
         "rep_pen_range", "dry_multiplier", "dry_base", "xtc_probability", "xtc_threshold",
         "smoothing_factor", "truncation_length", "ban_eos_token", "add_bos_token", "sampler_seed",
         "samplers", "custom_token_bans", "grammar_string", "do_sample"},
    ),
    "SillyTavern, chat with a greeting and a prefill": (
        CHAT,
        {"messages": [{"role": "system", "content": "Play Ann."}, USER | {"name": "You"},
                      {"role": "assistant", "content": "Hello.", "name": "Ann"}, USER,
                      {"role": "assistant", "content": "Ann:"}],
         "max_tokens": 9, "stop": STOPS[:5], "logit_bias": {}, "n": 1, "seed": -1, "stream": True},
        {"messages.name"},
    ),
    "LM Studio's example": (
        CHAT,
        {"messages": [USER], "temperature": 0.7, "max_tokens": -1, "stream": False, "ttl": 300},
        {"ttl"},
    ),
    "a desktop program's defaults": (
        CHAT,
        {"messages": [USER], "stream": True, "temperature": 0.7, "top_k": 40, "top_p": 0.95, "min_p": 0.05,
         "repeat_penalty": 1.0, "repeat_last_n": 64, "n_predict": -1, "cache_prompt": True, "id_slot": 0,
         "dynatemp_range": 0, "dynatemp_exponent": 1, "stop": []},
        {"repeat_penalty", "repeat_last_n", "n_predict", "cache_prompt", "id_slot", "dynatemp_range",
         "dynatemp_exponent"},
    ),
    "Zed, after a call": (
        CHAT,
        {"messages": [{"role": "system", "content": "Edit."}, USER,
                      {"role": "assistant", "content": None, "tool_calls": [CALLED], "reasoning_content": ""},
                      {"role": "tool", "content": [], "tool_call_id": "call_1"}],
         "stream": True, "stream_options": {"include_usage": True}, "max_completion_tokens": 99,
         "temperature": 1.0, "parallel_tool_calls": False, "prompt_cache_key": "thread",
         "tools": [{"type": "function", "function": {**READ, "description": None}}]},
        {"messages.reasoning_content", "prompt_cache_key"},
    ),
    "Cline, after a call": (
        CHAT,
        {"messages": [{"role": "developer", "content": "Edit."}, {"role": "user", "content": [
                          {"type": "text", "text": "Hi"}, {"type": "text", "text": "<environment/>"}]},
                      {"role": "assistant", "content": "", "tool_calls": [CALLED]},
                      {"role": "tool", "content": "(no output)", "tool_call_id": "call_1"}],
         "stream": True, "stream_options": {"include_usage": True}, "reasoning_effort": "medium",
         "tools": [{"type": "function", "function": READ | {"strict": False}}]},
        {"reasoning_effort"},
    ),
    "Roo, with its cache": (
        CHAT,
        {"messages": [{"role": "system", "content": [
                          {"type": "text", "text": "Edit.", "cache_control": {"type": "ephemeral"}}]}, USER],
         "stream": True, "temperature": 0, "stream_options": {"include_usage": True},
         "parallel_tool_calls": False, "tools": [{"type": "function", "function": READ}],
         "tool_choice": "auto"},
        {"messages.content.cache_control"},
    ),
    "Continue, a completion in the editor": (
        COMPLETIONS,
        {"prompt": "<fim_prefix>a<fim_suffix>b<fim_middle>", "max_tokens": 9, "temperature": 0.01,
         "stream": True, "stop": ["<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<file_sep>",
                                  "<|endoftext|>", "/src/", "#- coding: utf-8", "```"],
         "presence_penalty": 0, "frequency_penalty": 0, "suffix": ""},
        {"suffix"},
    ),
    "AnythingLLM and LibreChat": (
        CHAT,
        {"messages": [{"role": "system", "content": "Be kind.\nContext:\n"}, USER], "temperature": 0.7,
         "max_tokens": 99, "stream": True, "user": "64f0", "n": 1, "stop": None, "logit_bias": None},
        {"user"},
    ),
    "n8n and Dify": (
        CHAT,
        {"messages": [USER], "top_p": 1, "frequency_penalty": 0, "presence_penalty": 0, "n": 1,
         "stream": False, "response_format": {"type": "text"}, "enable_search": False, "user": "abc",
         "chat_template_kwargs": {"enable_thinking": False}},
        {"enable_search", "user", "chat_template_kwargs.enable_thinking"},
    ),
    "Codex, after a call": (
        RESPONSES,
        {"instructions": "Edit.", "store": False, "stream": True, "include": ["reasoning.encrypted_content"],
         "input": [
             {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Box."}]},
             {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
             {"type": "reasoning", "id": "rs_1", "summary": [], "content": None, "encrypted_content": None},
             {"type": "function_call", "call_id": "call_1", "name": "read", "arguments": "{}"},
             {"type": "function_call_output", "call_id": "call_1", "output": [
                 {"type": "input_text", "text": "x"}]}],
         "tools": [{"type": "function", "strict": False, **READ},
                   {"type": "custom", "name": "apply_patch", "format": {"type": "grammar"}},
                   {"type": "web_search", "external_web_access": False}],
         "tool_choice": "auto", "parallel_tool_calls": True, "prompt_cache_key": "thread",
         "reasoning": {"effort": "medium", "summary": "auto"}, "text": {"verbosity": "medium"},
         "client_metadata": {"installation": "x"}},
        {"include", "store", "input.id", "input.reasoning", "tools.custom", "tools.web_search",
         "prompt_cache_key", "reasoning", "reasoning.summary", "text.verbosity", "client_metadata"},
    ),
    "Claude Code, after a call": (
        MESSAGES,
        {"max_tokens": 99, "stream": True, "metadata": {"user_id": "u"}, "temperature": 1,
         "thinking": {"type": "enabled", "budget_tokens": 31999}, "output_config": {"effort": "medium"},
         "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
         "system": [{"type": "text", "text": "x-anthropic-billing-header: cc_version=2"},
                    {"type": "text", "text": "Edit.", "cache_control": {"type": "ephemeral"}}],
         "tools": [{"name": "read", "input_schema": {
             "$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object",
             "properties": {"path": {"type": "string"}}, "additionalProperties": False}}],
         "messages": [
             {"role": "user", "content": [{"type": "text", "text": "<system-reminder/>"},
                                          {"type": "text", "text": "Hi"}]},
             {"role": "assistant", "content": [{"type": "thinking", "thinking": "x", "signature": "s"},
                                               {"type": "tool_use", "id": "t", "name": "read", "input": {}}]},
             {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "x",
                                           "is_error": False, "cache_control": {"type": "ephemeral"}}]}]},
        {"metadata", "thinking", "thinking.budget_tokens", "output_config.effort", "context_management",
         "system.cache_control", "system.x-anthropic-billing-header", "messages.content.thinking",
         "messages.content.signature", "messages.content.is_error", "messages.content.cache_control"},
    ),
}  # fmt: skip
REFUSED: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "another sampler": (CHAT, {"messages": [USER], "mirostat": 2}, "mirostat", "no such sampler"),
    "llama.cpp's penalty": (
        CHAT,
        {"messages": [USER], "repeat_penalty": 1.1},
        "repeat_penalty",
        "repetition_penalty",
    ),
    "Ollama's options": (CHAT, {"messages": [USER], "options": {"num_ctx": 8}}, "options", "beside `model`"),
    "a length by another name": (
        COMPLETIONS,
        {"prompt": "Hi", "max_new_tokens": 9},
        "max_new_tokens",
        "max_tokens",
    ),
    "no tokens": (CHAT, {"messages": [USER], "max_tokens": 0}, "max_tokens", "-1 for as many as fit"),
    "fewer than none": (COMPLETIONS, {"prompt": "Hi", "max_tokens": -2}, "max_tokens", "at least -1, not -2"),
    "too many stops": (CHAT, {"messages": [USER], "stop": ["a"] * 17}, "stop", "at most 16 entries, not 17"),
}


async def post(house: House, path: str, fields: dict[str, Any]) -> httpx.Response:
    await house.load()
    async with house.client() as client:
        answer: httpx.Response = await client.post(path, json={"model": MODEL} | fields)
        return answer


@pytest.mark.parametrize("client", TAKEN)
async def test_what_a_client_sends_by_default_is_answered(
    make_house: Callable[..., House], client: str
) -> None:
    path, fields, ignored = TAKEN[client]
    answer = await post(make_house(FakeEngine(max_model_len=4096)), path, fields)
    assert answer.status_code == 200, answer.text
    named = answer.headers.get("x-ignored-fields")
    assert set(named.split(", ") if named else []) == ignored


@pytest.mark.parametrize("case", REFUSED)
async def test_what_would_change_the_answer_is_refused(make_house: Callable[..., House], case: str) -> None:
    path, fields, param, words = REFUSED[case]
    error = assert_openai_error(await post(make_house(), path, fields), 400, None)
    assert error["param"] == param and words in error["message"]


@pytest.mark.parametrize(("path", "prompt"), [(CHAT, {"messages": [USER]}), (COMPLETIONS, {"prompt": "Hi"})])
async def test_a_limit_of_minus_one_is_what_fits(
    make_house: Callable[..., House], path: str, prompt: dict[str, Any]
) -> None:
    house = make_house()
    answer = await post(house, path, prompt | {"max_tokens": -1})
    assert answer.status_code == 200, answer.text
    [call] = house.engine.calls
    assert call["max_tokens"] == house.engine.max_model_len - len(call["prompt_ids"])

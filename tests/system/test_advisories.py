"""What is known to break or open other model servers, sent to the real one, each advisory by its number.

Of GHSA-5r3c-5x4v-8gjh the content is not public, so it is left out.
"""

import asyncio
import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from bench.load import Answer, Connection, Service, ask, descendants
from tests.support.system import BEARER, chat, post

pytestmark = pytest.mark.usefixtures("unharmed")


SCHEMA_BOMB: Any = {"type": "string"}
for _ in range(200):
    SCHEMA_BOMB = {"type": "object", "properties": {"a": SCHEMA_BOMB}}
ENDLESS = "{% for i in range(10 ** 9) %}{% for j in range(10 ** 9) %}{% endfor %}{% endfor %}"
PARTS = {
    "image": {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/secret.png"}},
    "video": {"type": "video_url", "video_url": {"url": "file:///etc/passwd"}},
    "audio": {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
}


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


FIELDS: dict[str, dict[str, Any]] = {
    "CVE-2026-34756 n": {"n": 16_384},
    "CVE-2026-34756 huge n": {"n": 10**18},
    "CVE-2025-62426 chat_template_kwargs": {"chat_template_kwargs": {"tokenize": True}},
    "CVE-2026-115911 endless template": {"chat_template": ENDLESS},
    "CVE-2026-105757 deep schema": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA_BOMB}}
    },
    "CVE-2026-105757 grammar": {"guided_grammar": 'root ::= root "a"'},
    "CVE-2026-105757 structured_outputs": {"structured_outputs": {"regex": "("}},
    "CVE-2026-55574 regex": {"guided_regex": "(a|aa)+$"},
    "CVE-2026-93989 bad_words": {"bad_words": ["", "a"]},
    "GHSA-fpch-3xrf-7q96 thinking_token_budget": {"thinking_token_budget": -2},  # see test_thinking.py
    "CVE-2026-114051 min_tokens": {"min_tokens": 10**6},
    "CVE-2026-73557 prompt_embeds": {"prompt_embeds": "gASVAAAA"},
    "CVE-2025-6242 media": {"messages": user([PARTS["image"]])},
    "CVE-2025-6242 file": {"messages": user([PARTS["video"]])},
    "CVE-2026-115912 handle": {"messages": user([PARTS["audio"]]), "mm_processor_kwargs": {"shm": "x"}},
    "control: request_id": {"request_id": "probe"},
    "control: priority": {"priority": -1},
    "control: vllm_xargs": {"vllm_xargs": {"a": 1}},
    "control: kv_transfer_params": {"kv_transfer_params": {"do_remote_prefill": True}},
    "control: cache_salt": {"cache_salt": "another's"},
    "control: beam search": {"use_beam_search": True},
    "control: prompt_logprobs": {"prompt_logprobs": 20},
    "control: top_logprobs": {"logprobs": True, "top_logprobs": 10**6},
    "control: many biases": {"logit_bias": {str(number): 1 for number in range(301)}},
    "control: bias of no token": {"logit_bias": {"999999": 1}},
    "control: many stops": {"stop": ["a"] * 17},
    "control: long stop": {"stop": "a" * 257},
    "control: many stop ids": {"stop_token_ids": [1] * 17},
    "control: infinite temperature": {"temperature": 1e308},
}


@pytest.mark.parametrize("name", FIELDS)
def test_advisory_a_dangerous_field_is_refused_by_its_name(service: Service, name: str) -> None:
    answer = post(service, **FIELDS[name])
    assert answer.status == 400 and answer.json["error"]["type"] == "invalid_request_error"
    named = [*FIELDS[name], *(field for value in FIELDS[name].values() for field in _names(value))]
    assert any(field in json.dumps(answer.json["error"]) for field in named)


@pytest.mark.parametrize("pattern", ["((a|aa)+)+$", "(a{1,1000}){1,1000}", "(?=a)*", "("])
def test_advisory_cve_2026_55574_a_pattern_costs_its_sender_at_most_an_answer(
    service: Service, pattern: str
) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": pattern}}}
    found = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    answer = post(service, response_format=found)
    assert answer.status in (200, 400)


def _names(value: Any) -> list[str]:
    return ["schema"] if "json_schema" in str(value) else []


@pytest.mark.parametrize(
    "prompt",
    [["a"] * 1025, [[1]] * 1025, [["a"]], [[]], "", [10**9], [-1], {"prompt_embeds": "x"}],
    ids=["texts", "token lists", "nested", "empty list", "empty", "unknown id", "negative", "embeddings"],
)
def test_advisory_cve_2026_73559_lists_of_prompts_are_bounded(service: Service, prompt: Any) -> None:
    body = json.dumps({"model": service.model, "prompt": prompt, "max_tokens": 1}).encode()
    answer = asyncio.run(ask(service.port, body, BEARER, "/v1/completions"))
    if prompt == "" and answer.status == 200:
        return  # a tokenizer that begins a text with a token of its own makes one of nothing
    assert answer.status == 400 and answer.json["error"]["param"].startswith("prompt")


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/completions", "/v1/embeddings", "/v1/messages"])
def test_advisory_cve_2026_115918_no_other_route_takes_a_template(service: Service, path: str) -> None:
    body = {"model": service.model, "input": "Hi", "prompt": "Hi", "messages": user("Hi"), "max_tokens": 1,
            "chat_template": ENDLESS}  # fmt: skip
    answer = asyncio.run(ask(service.port, json.dumps(body).encode(), BEARER, path))
    assert answer.status in (400, 404)


@pytest.mark.parametrize(
    "target",
    ["/v1/models", "//v1/models", "/v1/models?/health/live", "/health/live/../../v1/models", "/metrics",
     "/health/live%2f..%2f..%2fv1/models", "/v1/%6dodels", "http://test/v1/models", "/openapi.json",
     "http://test/health/live/../v1/models", "/health/live;/v1/models", "/HEALTH/LIVE"],
)  # fmt: skip
@pytest.mark.parametrize("host", ["test", "test/health/live", "test/health/live?"])
def test_advisory_cve_2026_48746_no_address_opens_the_door(service: Service, target: str, host: str) -> None:
    async def run() -> Answer:
        async with Connection.to(service.port) as connection:
            return await connection.ask(
                "GET", target, headers={"host": host, "x-original-url": "/health/live"}
            )

    assert asyncio.run(run()).status in (400, 401)


@pytest.mark.parametrize(
    "path",
    ["/invocations", "/tokenize", "/detokenize", "/inference/v1/generate", "/generate", "/scale_elastic_ep",
     "/collective_rpc", "/v1/load_lora_adapter", "/pause", "/resume", "/sleep", "/reset_prefix_cache",
     "/update_weights", "/pooling", "/v1/score", "/docs", "/server_info", "/admin/usage", "/load"],
)  # fmt: skip
def test_advisory_the_engines_own_routes_do_not_exist(service: Service, path: str) -> None:
    assert asyncio.run(ask(service.port, chat(service), path=path)).status == 401
    assert asyncio.run(ask(service.port, chat(service), BEARER, path)).status == 404
    assert service.get(path, BEARER)[0] == 404


def test_advisory_cve_2025_30202_nothing_but_http_listens_outside_of_the_machine(service: Service) -> None:
    own = {service.pid, *descendants(service.pid)}
    sockets = set()
    for pid in own:
        for file in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                sockets.add(os.readlink(f"/proc/{pid}/fd/{file}"))
    open_to_all = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{service.pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            address, state, inode = fields[1], fields[3], fields[9]
            loopback = address.startswith(("0100007F:", "0" * 24 + "01000000:"))
            if state == "0A" and f"socket:[{inode}]" in sockets and not loopback:
                open_to_all.append(address)
    assert open_to_all == []

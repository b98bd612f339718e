"""Other people's clients as they come: an address, a key and a model's name, and nothing else is set.

Each runs in a process of its own, offline, without our warnings filter: what they warn about is theirs.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

from bench.load import ROOT, Service
from tests.support.system import KEY

LITELLM = """
import asyncio, litellm
ask = dict(model="openai/" + MODEL, api_base=URL, api_key=KEY, max_tokens=8,
           messages=[{"role": "user", "content": "Name a color."}])
whole = litellm.completion(**ask, temperature=0)
chunks = list(litellm.completion(**ask, temperature=0, stream=True))
text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
assert text and text == whole.choices[0].message.content, (text, whole)
assert whole.usage.completion_tokens and chunks[-1].choices[0].finish_reason in ("stop", "length")
later = asyncio.run(litellm.acompletion(**ask, temperature=0))
assert later.choices[0].message.content == text
found = litellm.text_completion(model="text-completion-openai/" + MODEL, api_base=URL, api_key=KEY,
                               prompt="One, two,", max_tokens=4)
assert found.choices[0].text
try:
    litellm.completion(**ask, num_retries=0, n=9)
except litellm.BadRequestError as error:
    assert "n:" in str(error)
else:
    raise SystemExit("n=9 was accepted")
try:
    litellm.completion(**{**ask, "api_key": "wrong"}, num_retries=0)
except litellm.AuthenticationError:
    pass
else:
    raise SystemExit("a wrong key was accepted")
"""

LANGCHAIN = """
import asyncio
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAI
chat = ChatOpenAI(model=MODEL, base_url=URL, api_key=KEY, temperature=0, max_tokens=8)
messages = [SystemMessage("Be brief."), HumanMessage("Hi"), AIMessage("Hello."), HumanMessage("And?")]
whole = chat.invoke(messages)
assert whole.content and whole.usage_metadata["output_tokens"], whole
assert "".join(chunk.content for chunk in chat.stream(messages)) == whole.content
assert [one.content for one in chat.batch([messages, messages])] == [whole.content] * 2
assert asyncio.run(chat.ainvoke(messages)).content == whole.content
sure = chat.bind(logprobs=True, top_logprobs=2).invoke(messages)
assert len(sure.response_metadata["logprobs"]["content"]) == sure.usage_metadata["output_tokens"]
assert OpenAI(model=MODEL, base_url=URL, api_key=KEY, max_tokens=4).invoke("One, two,")
"""


@pytest.mark.parametrize("program", [LITELLM, LANGCHAIN], ids=["litellm", "langchain-openai"])
def test_a_client_works_as_it_comes(service: Service, tmp_path: Path, program: str) -> None:
    names = f"URL, KEY, MODEL = {service.url + '/v1'!r}, {KEY!r}, {service.model!r}\n"
    _run(ROOT / ".venv/tests/bin/python", ["-c", names + program], tmp_path)


TASK = """
task: colors
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 8}
metric_list: [{metric: exact_match}]
"""


def test_lm_eval_measures_through_the_chat_endpoint(service: Service, tmp_path: Path) -> None:
    rows = [{"question": f"What is {number} and {number}?", "answer": str(2 * number)} for number in range(4)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "colors.yaml").write_text(TASK.replace("FILE", str(data)))
    address = f"base_url={service.url}/v1/chat/completions"
    arguments = ["-m", "lm_eval", "run", "--model", "local-chat-completions", "--tasks", "colors",
                 "--model_args", f"model={service.model},{address}", "--include_path", str(tmp_path),
                 "--apply_chat_template", "--output_path", str(tmp_path / "results"),
                 "--log_samples"]  # fmt: skip
    _run(ROOT / ".venv/trainer/bin/python", arguments, tmp_path)
    [found] = (tmp_path / "results").rglob("results_*.json")
    assert json.loads(found.read_text())["n-samples"]["colors"]["effective"] == 4
    [samples] = (tmp_path / "results").rglob("samples_*.jsonl")
    assert all(json.loads(line)["resps"][0][0] for line in samples.read_text().splitlines())


def _run(python: Path, arguments: list[str], home: Path) -> None:
    environment = {
        **os.environ,
        "OPENAI_API_KEY": KEY,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(home / "hf"),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # or it asks GitHub for prices at import
    }
    done = subprocess.run(
        [str(python), *arguments], cwd=home, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]

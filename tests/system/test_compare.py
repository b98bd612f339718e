"""Base, adapters and merged model served side by side by the real engine, and keys' prompts cached apart.

The engine computes in float32 here, as the reference does: in bfloat16 a late token may differ.
"""

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest

from bench.load import free_port
from tests.support import ROOT
from tests.support.system import Up, get

KEY = "a-key-for-this-test-only"
ADMIN_KEY = "an-operators-key-for-this-test"
TOKENS = 12
# transformers and PEFT: greedy answers of the merged model, of the base, and of the base with each adapter.
REFERENCE = """
import json, sys
import torch
from pathlib import Path
from peft import PeftModel
from transformers import GenerationConfig
from trainer.base_model import load_model, load_tokenizer
from trainer.data.conversation import Message
from trainer.data.tokenize import ChatTokenizer

merged, base, adapters, prompts, tokens = map(json.loads, sys.argv[1:])
tokenizer = load_tokenizer(Path(merged))
chat = ChatTokenizer(tokenizer)
ends = GenerationConfig.from_pretrained(merged)

def answers(directory, adapter=None):
    model = load_model(Path(directory), "float32", "cpu")
    model = PeftModel.from_pretrained(model, adapter).eval() if adapter else model
    for prompt in prompts:
        ids = torch.tensor([chat.prompt_ids([Message("user", prompt)])])
        answer = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
                              max_new_tokens=tokens, eos_token_id=ends.eos_token_id, pad_token_id=0)
        yield tokenizer.decode(answer[0][ids.shape[1]:], skip_special_tokens=True)

found = {"merged": list(answers(merged)), "base": list(answers(base))}
found |= {name: list(answers(base, adapter)) for name, adapter in adapters.items()}
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Compared:
    """An API that serves the merged model, base and adapters, and two keys."""

    url: str
    name: str
    base: Path
    adapters: dict[str, Path]
    other_key: str

    def client(self, key: str = KEY) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def answer(self, model: str, prompt: str, key: str = KEY, tokens: int = TOKENS) -> str:
        found = self.client(key).chat.completions.create(
            model=model, messages=[{"role": "user", "content": prompt}], temperature=0, max_tokens=tokens
        )
        return found.choices[0].message.content or ""

    def cached_tokens(self) -> float:
        request = urllib.request.Request(
            f"{self.url}/metrics", headers={"Authorization": f"Bearer {ADMIN_KEY}"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            page = answer.read().decode()
        [line] = [x for x in page.splitlines() if x.startswith("finechat_cached_prompt_tokens_total ")]
        return float(line.split()[-1])


@pytest.fixture(scope="module")
def compared(first_up: Up, artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compared]:
    folder = tmp_path_factory.mktemp("compared")
    [base] = [config.parent for config in artifacts.glob("bases/*/config.json")]
    adapters = {path.parts[-3].split("-")[0]: path for path in artifacts.glob("runs/*/steps-*/adapter")}
    port = free_port()
    environment = {
        **os.environ,
        "ARTIFACTS_DIR": str(artifacts),
        "API_PORT": str(port),
        "API_KEY": KEY,
        "API_ADMIN_KEY": ADMIN_KEY,
        "API_KEYS_FILE": str(folder / "keys.json"),
        "API_BASE_DIR": str(base),
        "API_ADAPTERS": ",".join(f"{name}={path}" for name, path in adapters.items()),
        "ATEN_CPU_CAPABILITY": "avx2",
    }
    api = [str(ROOT / ".venv/api/bin/python"), "-m", "api"]
    made = subprocess.run(
        [*api, "keys", "create", "other"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    log = folder / "api.log"
    with log.open("wb") as output:
        process = subprocess.Popen(api, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    name = json.loads((artifacts / "models/current/manifest.json").read_text())["name"]
    try:
        _wait_until_ready(url, process, log)
        yield Compared(url, name, base, adapters, made.stdout.strip())
    finally:
        process.terminate()
        process.wait(30)


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while True:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        try:
            if get(f"{url}/health/ready")[0] == 200:
                return
        except urllib.error.URLError:
            time.sleep(0.2)


def test_each_name_answers_as_transformers_and_peft_do(compared: Compared, artifacts: Path) -> None:
    assert set(compared.adapters) == {"r4", "r8"}
    samples = json.loads((artifacts / "models/current/samples.json").read_text())
    prompts = [*(sample["prompt"] for sample in samples), "Say hello in French."]
    names = [compared.name, "base", *compared.adapters]
    assert [model.id for model in compared.client().models.list()] == names
    with ThreadPoolExecutor(16) as pool:  # all in one batch of the engine, and none mixed up
        found = {name: [pool.submit(compared.answer, name, prompt) for prompt in prompts] for name in names}
    served = {name: [answer.result() for answer in answers] for name, answers in found.items()}
    served["merged"] = served.pop(compared.name)
    adapters = {name: str(path) for name, path in compared.adapters.items()}
    asked = [str((artifacts / "models/current").resolve()), str(compared.base), adapters, prompts, TOKENS]
    done = subprocess.run(
        [str(ROOT / ".venv/trainer/bin/python"), "-c", REFERENCE, *map(json.dumps, asked)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert served == json.loads(done.stdout)
    rank = json.loads((artifacts / "models/current/manifest.json").read_text())["adapter"]["rank"]
    same = [a == b for a, b in zip(served["merged"], served[f"r{rank}"], strict=True)]
    assert any(same), "what was merged is the winner, but for the cast of its weights"
    assert len({json.dumps(answers) for answers in served.values()}) >= 3, "else this compares nothing"


def test_a_key_cannot_find_out_what_another_has_asked(compared: Compared) -> None:
    long = "Remember this: " + "one two three four five six seven eight nine ten " * 30
    gained = []
    for key in (KEY, KEY, compared.other_key, compared.other_key):
        before = compared.cached_tokens()
        compared.answer(compared.name, long, key, tokens=1)
        gained.append(compared.cached_tokens() - before)
    assert gained[0] == 0 and gained[1] >= 128
    assert gained[2] == 0 and gained[3] == gained[1]

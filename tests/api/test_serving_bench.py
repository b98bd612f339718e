"""bench/serving.py compares like with like: equal engine settings, right counts, and a table that says so."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
from transformers import PreTrainedTokenizerFast

from api.engine.artifact import read_artifact
from api.engine.delta import Delta
from bench import client, random_model, serving, stacks
from tests.support.api import FakeEngine, House

ROOT = Path(__file__).resolve().parent.parent.parent
# vLLM prints and warns as it is imported, so in a process of its own. Its command line and its constructor
# differ in some defaults (None for False), so what is compared is what is not a default.
SAME_ARGUMENTS = """
import sys
from pathlib import Path
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser
from api.engine.presets import PRESETS
from api.errors import EngineStartError
from bench.servers import arguments_of, differences, flags

parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
parsed = lambda flags: AsyncEngineArgs.from_cli_args(parser.parse_args(flags))
own = arguments_of(Path(sys.argv[1]), "auto")
default = parsed(["--model", own["model"]])
for preset in PRESETS.values():
    ours = {**own, **preset}
    stock = {"model": own["model"], **differences(parsed(flags(ours)), default)}
    assert stock == ours, (stock, ours)
    assert ours["enable_prefix_caching"] and ours["structured_outputs_config"]["disable_any_whitespace"]
try:
    arguments_of(Path(sys.argv[1]), "latency")
except EngineStartError as error:
    assert str(error) == "API_PRESET=latency needs a GPU, and there is none; use auto"
else:
    raise AssertionError("a preset that does nothing was taken")
"""


def test_stock_gets_the_engine_arguments_of_the_service_and_a_cpu_no_preset(artifacts: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", SAME_ARGUMENTS, str(artifacts)]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.anyio
async def test_the_client_counts_what_the_api_counts(make_house: Callable[..., House]) -> None:
    house = make_house(FakeEngine([Delta("", 1, None), Delta("a", 1, None), Delta("b", 2, "length")]))
    async with house.serving() as url:
        found = await client.measure(url, client.Load(requests=7, streams=3, words=4, tokens=9))
    assert found["output_tokens"] == 7 * 4
    assert found["prompt_tokens"] == sum(len(call["prompt_ids"]) for call in house.engine.calls)
    assert {call["max_tokens"] for call in house.engine.calls} == {9}
    assert 0 < found["ttft_p50_ms"] <= found["e2e_p50_ms"] <= found["e2e_p99_ms"]


@pytest.mark.anyio
async def test_the_client_takes_no_refusal_for_an_answer(make_house: Callable[..., House]) -> None:
    async with make_house().serving() as url:
        with pytest.raises(ConnectionError, match="maximum context length"):
            await client.measure(url, client.Load(requests=1, streams=1, words=999))


def test_percentiles_and_rates_are_those_of_the_times() -> None:
    answers = [
        client.Answer(0.0, 0.1 * n, 0.1 * n + 2.0, 3.0, prompt_tokens=5, tokens=11) for n in range(1, 5)
    ]
    found = client.summary(answers, wall_s=2.0)
    assert (found["output_tokens"], found["prompt_tokens"], found["output_tokens_per_s"]) == (44, 20, 22.0)
    assert (found["ttft_p50_ms"], found["ttft_p99_ms"]) == (300.0, 400.0)
    assert found["tpot_p50_ms"] == found["tpot_p99_ms"] == 200.0
    assert found["e2e_p95_ms"] == 3000.0


def test_lengths_like_sharegpt_keep_their_means_and_prompts_differ() -> None:
    load = client.Load(requests=2000, words=220, tokens=200, lengths="sharegpt")
    chats = [load.chat(number) for number in range(load.requests)]
    words = [len(text.split()) - 1 for text, _ in chats]
    assert 200 < sum(words) / len(words) < 240 and max(words) == 880 and min(words) < 20
    assert 180 < sum(tokens for _, tokens in chats) / len(chats) < 220
    assert len({text for text, _ in chats}) == load.requests
    assert chats[7] == load.chat(7) != client.Load(lengths="sharegpt", seed=1).chat(7)


def _row(
    server: str, streams: int, rate: float, turn: int = 0, preset: str = "auto", extra: str = ""
) -> serving.Row:
    times = dict.fromkeys((*serving.COMPARED, "client_cores", "front_cores", "core_cores"), 1.0)
    case = {"server": server, "preset": preset, "lengths": "fixed", "streams": streams, "repeat": turn}
    return {**times, **case, "output_tokens_per_s": rate, "with": {"quantization": extra} if extra else {}}


def test_ratios_are_of_one_turn_and_their_median_is_shown() -> None:
    rows = [_row("stock", 8, rate, turn) for turn, rate in enumerate((100.0, 900.0, 200.0))]
    rows += [_row("ours", 8, rate, turn) for turn, rate in enumerate((300.0, 1.0, 240.0))]
    rows += [_row("ours", 8, 9000.0, turn=7)]  # no row of the same turn: no part of the ratio
    rows += [_row("stock", 64, 1000.0), _row("ours-preset", 64, 1500.0, preset="throughput")]
    rows += [_row("stock", 64, 2000.0, extra="fp8"), _row("ours", 512, 70.0)]
    lines = serving.table(rows).splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")[2:5]] for line in lines]
    assert cells == [
        ["8", "stock", "200.0 (1.00)"],
        ["8", "ours", "270.0 (1.20)"],
        ["64", "stock", "1,000.0 (1.00)"],
        ["64", "ours-preset throughput", "1,500.0 (1.50)"],
        ["64", 'stock {"quantization": "fp8"}', "2,000.0 (2.00)"],
        ["512", "ours", "70.0"],
    ]


def test_a_stack_counts_for_the_part_whose_frame_it_has() -> None:
    idle = "Thread.run (threading.py:1);Queue.get (queue.py:171);Condition.wait (threading.py:355) 900"
    found = stacks.shares(
        [
            "main (a.py:1);EngineCore.step (vllm/v1/engine/core.py:9);f (x.py:1);sample_tokens (y.py:7) 30",
            "main (a.py:1);EngineCore.step (vllm/v1/engine/core.py:9);sample_tokens (y.py:8) 30",
            "main (a.py:1);Scheduler.schedule (vllm/v1/core/sched/scheduler.py:9) 20",
            "main (a.py:1) 20",
            idle,
        ],
        stacks.PARTS["core"],
    )
    assert found["samples"] == 100
    assert found["parts"] == {"sampling": 0.6, "scheduling": 0.2, "other": 0.2}
    assert found["functions"]["sample_tokens (y.py)"] == 0.6


def test_cold_and_warm_starts_stand_apart() -> None:
    case = {"server": "ours", "preset": "auto", "with": {}}
    rows = [{**case, "cold": cold, "ready_s": ready_s} for cold, ready_s in ((True, 90.4), (False, 31.0))]
    assert serving.starts(rows).splitlines()[2] == "| ours | 90 | 31 |"


def test_random_weights_are_a_whole_artifact_that_says_what_it_is(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    small |= {"num_key_value_heads": 1, "head_dim": 16, "vocab_size": 259}
    directory = random_model.write(tmp_path / "tokenizer", tmp_path / "artifacts", **small)
    artifact = read_artifact(tmp_path / "artifacts")
    artifact.verify()
    schema = json.loads((ROOT / "docs" / "artifact.schema.json").read_text())
    jsonschema.validate(json.loads((directory / "manifest.json").read_text()), schema)
    assert artifact.failed_gates == ["random weights"]
    assert json.loads((directory / "config.json").read_text())["eos_token_id"] == tokenizer.eos_token_id


def test_the_documents_state_the_kept_figures() -> None:
    kept = json.loads((ROOT / "bench" / "results" / "serving-h100.json").read_text())
    operations, readme = ((ROOT / name).read_text() for name in ("docs/operations.md", "README.md"))
    table = serving.table(kept["rows"])
    assert table in operations and serving.starts(kept["starts"]) in operations
    assert (
        stacks.table(json.loads((ROOT / "bench" / "results" / "profile-h100.json").read_text())) in operations
    )
    found = {}
    for line in table.splitlines()[2:]:
        lengths, streams, server, tokens, _, first, *_ = (cell.strip() for cell in line.strip("|").split("|"))
        found[lengths, streams, server] = tuple(c.partition("(")[2].rstrip(")") for c in (tokens, first))
    many, most = found["fixed", "256", "ours"], found["fixed", "512", "ours"]
    latency, throughput = (
        found["fixed", streams, f"ours-preset {preset}"][0]
        for streams, preset in (("1", "latency"), ("256", "throughput"))
    )
    readme = " ".join(readme.split())
    assert f"{many[0]} times the tokens of vLLM's own server at 256 streams, {most[0]} times at 512" in readme
    assert f"come after {found['sharegpt', '256', 'ours'][1]} times its wait" in readme
    assert f"{latency} times at one stream and {throughput} times at 256" in readme

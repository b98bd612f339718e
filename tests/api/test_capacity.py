"""The capacity model: its replica is a queue that theory knows, and its answer is the fewest that suffice."""

import statistics
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from bench.capacity import check, cost, fewest, fit, generate, read_trace
from bench.client import Load
from bench.fleet import Arrival, Replica, Speed, benchmark, choose, simulate

STEADY = Speed(((1, 0.01), (2, 0.01)), 0.0, 0.0, slots=1, step_tokens=8192)  # 10 ms, however many
GPU = Speed(((1, 0.0034), (64, 0.008), (256, 0.02)), 1e-5, 0.02, slots=256, step_tokens=8192)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_a_replica_with_one_slot_waits_as_a_queue_with_one_server_and_fixed_work(load: float) -> None:
    """M/D/1: the mean wait is load / (2 (1 − load)) of the work, by Pollaczek and Khinchine."""
    work_s = 10 * 0.01
    replica = Replica(STEADY)
    waits = []
    for arrival in generate(load / work_s, seconds=10_000, seed=1):
        waits += [a.first - a.begun - 0.01 for a in replica.run(arrival.arrival_s)]
        replica.submit(Arrival(arrival.arrival_s, 1, 10))
    assert statistics.mean(waits) == pytest.approx(work_s * load / (2 * (1 - load)), rel=0.05)


def test_one_request_takes_its_prompt_and_its_steps() -> None:
    found = simulate([Arrival(5.0, 1000, 11)], GPU, replicas=1)
    assert found["ttft_p50_ms"] == pytest.approx(20 + 3.4 + 10)
    assert found["tpot_p50_ms"] == pytest.approx(3.4)
    assert found["output_tokens_per_s"] == pytest.approx(11 / (0.0334 + 0.034), abs=0.1)


def test_a_long_prompt_is_read_in_parts_while_others_get_their_tokens() -> None:
    replica = Replica(replace(STEADY, prompt_token_s=0.001, slots=2, step_tokens=101))
    replica.submit(Arrival(0.0, 1, 5))
    replica.submit(Arrival(0.0, 301, 1))
    long, short = (
        replica.run()
    )  # 101 tokens in the first step; then 100 together with an answer's, twice, and the last
    assert long.ended == pytest.approx(0.111 + 0.110 + 0.110 + 0.011)
    assert short.first == pytest.approx(0.111)
    assert short.ended == pytest.approx(long.ended + 0.01)


def test_more_slots_than_requests_make_nobody_wait() -> None:
    trace = [Arrival(0.0, 1, 100)] * 8
    together, in_turns = (simulate(trace, replace(STEADY, slots=slots), replicas=1) for slots in (8, 4))
    assert together["e2e_p99_ms"] == pytest.approx(1000)
    assert in_turns["e2e_p99_ms"] == pytest.approx(2000)


def test_more_replicas_never_make_it_slower() -> None:
    trace = generate(rate=60, seconds=60, burst=4)
    found = [simulate(trace, GPU, replicas) for replicas in (1, 2, 4, 8)]
    for name in ("ttft_p95_ms", "tpot_p95_ms", "in_progress"):
        figures = [row[name] for row in found]
        assert figures == sorted(figures, reverse=True), name


def test_the_least_busy_replica_is_chosen() -> None:
    assert [choose([3, 1, 2], 7, dispatch) for dispatch in ("least-busy", "round-robin")] == [1, 1]
    assert choose([3, 1, 1], 0, "least-busy") == 1
    trace = generate(rate=60, seconds=60, burst=4)
    waits = {
        dispatch: simulate(trace, replace(GPU, slots=16), 4, dispatch)["ttft_p95_ms"]
        for dispatch in ("least-busy", "round-robin")
    }
    assert waits["least-busy"] < waits["round-robin"]


def test_a_measured_curve_gives_back_the_speed_that_made_it() -> None:
    rows = []
    for streams in (1, 8, 64, 256):
        requests = max(6, 4 * streams)
        shown = benchmark(GPU, [(512, 256)] * requests, streams)
        rows.append({"streams": streams, "requests": requests, **shown})
    found = fit(rows, GPU.slots, GPU.step_tokens)
    assert found.prompt_token_s == pytest.approx(GPU.prompt_token_s, rel=0.1)
    assert found.request_s == pytest.approx(GPU.request_s, rel=0.1)
    for streams in (1, 8, 64, 256):
        assert found.step_s(streams, 0) == pytest.approx(GPU.step_s(streams, 0), rel=0.1)


@pytest.mark.parametrize("lengths", ["fixed", "sharegpt"])
def test_a_simulated_replica_is_checked_with_the_prompts_that_the_real_one_had(lengths: str) -> None:
    load = Load(requests=40, streams=8, words=100, tokens=50, lengths=lengths, seed=3)
    chats = [load.chat(number) for number in range(load.requests)]
    sizes = [(len(text.split()) + 10, tokens) for text, tokens in chats]
    measured = {**vars(load), **benchmark(GPU, sizes, load.streams)}
    assert set(check(GPU, [measured])[f"{lengths} 8"].values()) == {1.0}
    slower = check(replace(GPU, points=((1, 0.0068), (64, 0.016))), [measured])
    assert slower[f"{lengths} 8"]["tpot_p50_ms"] == pytest.approx(2, abs=0.1)


def test_a_curve_without_one_stream_is_refused() -> None:
    row = {"streams": 8, "requests": 8, "prompt_tokens": 8, "output_tokens": 80}
    with pytest.raises(ValueError, match=r"streams \[8\], and 1 and more"):
        fit([row | {"output_tokens_per_s": 1.0, "ttft_p50_ms": 1.0}], GPU.slots, GPU.step_tokens)


def test_the_answer_is_the_fewest_that_meet_the_target() -> None:
    trace = generate(rate=200, seconds=60, burst=4)
    target = {"ttft": 60.0, "tpot": 8.0}

    def meets(replicas: int) -> bool:
        found = simulate(trace, GPU, replicas)
        return all(found[f"{name}_p95_ms"] <= most for name, most in target.items())

    replicas, found = fewest(trace, GPU, target, 95, "least-busy")
    assert replicas > 2 and meets(replicas) and not meets(replicas - 1)
    assert found == simulate(trace, GPU, replicas)


def test_a_target_below_an_idle_replica_is_refused_with_both_figures() -> None:
    with pytest.raises(ValueError, match=r"a replica for each request gives .*ttft.*, and .*1.0"):
        fewest(generate(2, 10), GPU, {"ttft": 1.0, "tpot": 50.0}, 95, "least-busy")


def test_traces_have_the_rate_and_the_bursts_that_are_asked_for() -> None:
    for burst in (1.0, 8.0):
        moments = [arrival.arrival_s for arrival in generate(50, 2000, burst)]
        gaps = [after - before for before, after in pairwise(moments)]
        assert 1 / statistics.mean(gaps) == pytest.approx(50, rel=0.05)
        assert statistics.variance(gaps) / statistics.mean(gaps) ** 2 == pytest.approx(burst, rel=0.1)


def test_a_trace_is_read_in_order_and_a_wrong_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("arrival_s,prompt_tokens,output_tokens\n2,30,40\n1,10,20\n")
    assert read_trace(file) == [(1.0, 10, 20), (2.0, 30, 40)]
    for line in ("3,ten,20", "3,10", "3,10,0"):
        file.write_text(f"arrival_s,prompt_tokens,output_tokens\n1,10,20\n{line}\n")
        with pytest.raises(ValueError, match="line 3"):
            read_trace(file)


def test_costs_are_of_all_gpus() -> None:
    assert cost({"output_tokens_per_s": 1000.0}, gpus=4, gpu_hour=2.5) == {
        "an_hour": 10.0,
        "a_million_tokens": 2.778,
    }
    assert cost({"output_tokens_per_s": 1000.0}, gpus=4, gpu_hour=None) == {}

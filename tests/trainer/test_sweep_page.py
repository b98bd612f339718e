import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from trainer.pages.charts import Bar, Line, Scale, curves, forest, losses_scale
from trainer.pages.sweep import page, write_page

RATES = (1e-4, 3e-4, 1e-3)
RANKS = (8, 16, 32, 64)
SEEDS = (7, 8)
STEPS = 500


def arm(rank: int, rate: float, seed: int) -> dict[str, Any]:
    """A made arm: loss falls with steps and rate; rank 64 at the highest rate and seed 8 diverges."""
    luck = random.Random(f"{rank} {rate} {seed}")
    floor = 0.84 - 0.02 * math.log2(rank) / 6 + 0.05 * abs(math.log10(rate / 3e-4))
    floor += luck.gauss(0, 0.0008)
    diverged = rank == 64 and rate == RATES[-1] and seed == 8
    last = 41 if diverged else 125 if (rank, rate) in ((8, 1e-4), (16, 1e-4)) else STEPS
    train = [
        [s, 9.1 * s / last if diverged and s > 20 else floor + 1.2 * math.exp(-s / 40) + luck.gauss(0, 0.04)]
        for s in range(1, last + 1)
    ]
    validation = [[s, floor + 1.2 * math.exp(-s / 40)] for s in range(125, last + 1, 125)]
    return {
        "name": f"r{rank}-lr{rate:g}-s{seed}",
        "rank": rank,
        "learning_rate": rate,
        "seed": seed,
        "steps": last,
        "validation_score": None if diverged else floor,
        "ci_low": None if diverged else floor - 0.02,
        "ci_high": None if diverged else floor + 0.02,
        "by_source": {}
        if diverged
        else {f"source {i}": {"score": floor + 0.01 * i, "rows": 300 - i} for i in range(24)},
        "train_curve": train,
        "validation_curve": validation,
        "train_seconds": last * 0.6,
        "tokens_per_second": 28000 - 20 * rank,
        "stopped": f"out after {last} of {STEPS} steps" if last == 125 else None,
        "diverged": "loss 9.1 at step 40, started at 2.0" if diverged else None,
    }


def setting(rank: int, rate: float, arms: list[dict[str, Any]], best: float) -> dict[str, Any]:
    losses = [a["validation_score"] for a in arms if a["validation_score"] is not None]
    mean = sum(losses) / len(losses)
    return {
        "name": f"r{rank}-lr{rate:g}",
        "rank": rank,
        "learning_rate": rate,
        "seeds": [a["seed"] for a in arms],
        "compared_seeds": [a["seed"] for a in arms],
        "steps": max(a["steps"] for a in arms),
        "validation_score": mean,
        "ci_low": mean - 0.02,
        "ci_high": mean + 0.02,
        "difference_to_best": {"value": mean - best, "low": mean - best - 0.004, "high": mean - best + 0.004}
        if mean > best
        else {"value": 0.0, "low": 0.0, "high": 0.0},
        "seed_spread": max(losses) - min(losses) if len(losses) > 1 else None,
        "tied": mean - best < 0.004,
    }


def made_sweep() -> dict[str, Any]:
    arms = [arm(rank, rate, seed) for rank in RANKS for rate in RATES for seed in SEEDS]
    groups = [
        (rank, rate, [a for a in arms if (a["rank"], a["learning_rate"]) == (rank, rate)])
        for rank in RANKS
        for rate in RATES
    ]
    means = [
        sum(losses) / len(losses)
        for *_, group in groups
        if (losses := [a["validation_score"] for a in group if a["validation_score"] is not None])
    ]
    return {
        "model": "Llama-3.2-3B",
        "data": "FineTome-100k",
        "metric": "token-weighted loss, nats a token",
        "score": {
            "name": "loss",
            "unit": "nats a token",
            "lower_is_better": True,
            "reading": "Lower is likelier.",
        },
        "rows": 2000,
        "steps": STEPS,
        "arms": arms,
        "settings": sorted(
            (setting(rank, rate, group, min(means)) for rank, rate, group in groups),
            key=lambda found: found["validation_score"],
        ),
        "seed_noise_at": {"0.0001": {"standard_deviation": 0.0004, "degrees_of_freedom": 3}},
        "winner": "r32-lr0.0003",
        "separable": False,
        "verdict": "not separable",
        "reason": "r64-lr0.0003 has the lowest validation loss, 0.8193, but 2,000 rows and 2 seeds cannot "
        "tell r32-lr0.0003 from it (difference 0.0034 [-0.0006, 0.0074]), so the smaller rank wins",
        "power": "A difference of 0.0057 nats a token would have been found four times in five",
        "failed": {"r16-lr0.001-s7": "exit 137"},
    }


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def cells(made: str, name: str) -> list[str]:
    """The cells of the row that begins with `name`."""
    row = next(r for r in re.findall("<tr>(.*?)</tr>", made) if r.startswith(f"<td>{name}</td>"))
    return re.findall("<td[^>]*>(.*?)</td>", row)


def test_page_is_whole_and_takes_nothing_from_outside(tmp_path: Path) -> None:
    write_page(tmp_path, json.loads(json.dumps(made_sweep())))
    made = (tmp_path / "index.html").read_text()
    tags = Tags(made)
    assert not tags.open
    assert not set(tags.seen) & {"script", "link", "img", "iframe"}
    assert not re.search(r"https?:|url\(|@import|\bsrc=", made)
    assert "prefers-color-scheme: dark" in made


def test_every_name_is_escaped() -> None:
    sweep = made_sweep()
    for key in ("model", "data", "reason", "power", "metric"):
        sweep[key] = "<x>"
    sweep["failed"] = {"<x>": "<x>"}
    for entry in (*sweep["arms"], *sweep["settings"]):
        entry["name"] = "<x>"
    sweep["arms"][0]["by_source"] = {"<x>": {"score": 1.0, "rows": 1}}
    sweep["arms"][0]["stopped"] = "<x>"
    assert "x" not in Tags(page(sweep)).seen


def test_the_reason_is_on_top_and_the_winner_is_marked() -> None:
    made = page(made_sweep())
    assert made.index("so the smaller rank wins") < made.index("four times in five") < made.index("<svg")
    assert cells(made, "r32-lr0.0003")[-1] == "chosen"
    assert re.findall('class="end title">(.*?)<', made) == ["r32-lr0.0003"]


def test_every_arm_is_a_curve_and_every_setting_a_row_of_the_forest() -> None:
    sweep = made_sweep()
    made = page(sweep)
    assert made.count("<polyline") == len(sweep["arms"])
    assert made.count("<svg role") == len(RANKS) + 1
    forest = made[made.index("<div class=forest>") : made.index("Loss while training")]
    assert all(f">{s['name']}</text>" in forest for s in sweep["settings"])
    assert forest.count("hollow") == sum(s["tied"] for s in sweep["settings"])


def test_the_charts_are_labelled_with_the_score_of_the_objective() -> None:
    sweep = made_sweep()
    sweep["score"].update(name="margin", unit="nats a <pair>", lower_is_better=False)
    sweep.update(metric="margin", reason="", power=None)
    made = page(sweep)
    charts = "".join(re.findall("<svg.*</svg>", made))
    assert charts.count(">margin, nats a &lt;pair&gt;") == len(RANKS)
    assert ">validation margin below the best, nats a &lt;pair&gt;</text>" in charts
    assert "nats a token" not in made and "validation loss" not in made.lower()


def test_a_diverged_arm_is_named_and_bends_no_scale() -> None:
    sweep = made_sweep()
    with_it = page(sweep)
    assert "seed 8 diverged: loss 9.1 at step 40" in cells(with_it, "r64-lr0.001")[-1]
    sweep["arms"] = [a for a in sweep["arms"] if not a["diverged"]]
    without = page(sweep)
    name = "<title>r8-lr0.001-s7</title>"
    assert with_it[with_it.index(name) :][:900] == without[without.index(name) :][:900]


def test_a_setting_of_which_an_arm_diverged_has_a_row_and_no_figures() -> None:
    sweep = made_sweep()
    sweep["settings"] = [s for s in sweep["settings"] if s["name"] != "r64-lr0.001"]
    for a in sweep["arms"][-2:]:
        a.update(validation_score=None, train_curve=[[1, math.nan]], validation_curve=[], diverged="loss nan")
    made = page(sweep)
    row = cells(made, "r64-lr0.001")
    assert row[5:8] == ["–", "–", "–"] and row[-1] == "seed 7, 8 diverged: loss nan"
    assert "nan" not in "".join(re.findall("<svg.*</svg>", made)) and "in the table only" in made


def test_a_setting_that_was_stopped_early_stands_after_the_whole_ones() -> None:
    made = page(made_sweep())
    names = re.findall("<tr><td>(r[0-9]+-lr[^<]*)</td><td class=n>", made)
    assert names[0] == "r64-lr0.0003" and set(names[-2:]) == {"r8-lr0.0001", "r16-lr0.0001"}
    assert "compared with the best after as many steps" in made


def test_steps_of_stopped_arms_are_named_for_each_seed() -> None:
    notes = cells(page(made_sweep()), "r8-lr0.0001")[-1]
    assert notes == "seed 7, 8 out after 125 of 500 steps"


def test_noise_that_is_not_measured_is_said_not_to_be() -> None:
    sweep = made_sweep()
    assert "0.0004 at 0.0001 (3 degrees of freedom)" in page(sweep)
    one_seed(sweep)
    made = page(sweep)
    assert "One seed does not measure the variation between seeds" in made
    assert "with one seed it is not known which settings are worse" in made
    assert cells(made, "r16-lr0.0003")[-1] == "not known: one seed"


def one_seed(sweep: dict[str, Any]) -> None:
    """Leave one seed, as a sweep of one seed would be summarised."""
    sweep["arms"] = [a for a in sweep["arms"] if a["seed"] == SEEDS[0]]
    for found in sweep["settings"]:
        found.update(seeds=[SEEDS[0]], compared_seeds=[SEEDS[0]], seed_spread=None, tied=True)
    sweep.update(seed_noise_at={}, power=None, verdict="not known: one seed")


def test_the_seeds_of_each_comparison_are_shown() -> None:
    sweep = made_sweep()
    assert "Not every setting has a run" not in page(sweep)
    lost, other = sweep["settings"][1:3]
    lost.update(seeds=[8], compared_seeds=[8])
    other.update(difference_to_best=None, compared_seeds=[], tied=False)
    made = page(sweep)
    assert cells(made, lost["name"])[3] == "8"
    assert "not known: one seed" in cells(made, lost["name"])[-1]
    assert cells(made, "r8-lr0.0003")[3] == "7, 8"
    assert cells(made, other["name"])[-1].startswith("left out: no seed in common with the best")
    assert "Not every setting has a run at every seed" in made and "share no seed with the best" in made
    lost.update(seeds=[7, 8])
    assert "compared over seed 8" in cells(page(sweep), lost["name"])[-1]


def test_no_label_of_a_chart_is_cut() -> None:
    """A character is at most 0.6 em wide, of 12 units; the charts show what lies in their view box."""
    for steps, high in ((500, 0.02), (100_000, 0.0002), (2000, 0.11)):
        line = Line("r8", 0, [(1, 1.0), (steps, 0.5)], [], False)
        bars = [Bar("r64-lr0.00025", 0, high / 2, -high / 10, high, True, True)]
        drawn = (
            curves("rank 8", [line], steps, losses_scale([line], steps), "loss, nats a token"),
            forest(bars, "validation loss"),
        )
        for chart in drawn:
            width = float(re.findall(r'viewBox="0 0 (\d+)', chart)[0])
            labels = re.findall(r'<text x="([\d.]+)" y="[\d.]+" class="(mid|end)[^"]*">([^<]*)<', chart)
            assert any(anchor == "mid" for _, anchor, _ in labels)
            for x, anchor, text in labels:
                wide = 7.2 * len(text)
                left = float(x) - (wide / 2 if anchor == "mid" else wide)
                assert left >= 0 and left + wide <= width, text


def test_a_best_at_the_end_of_the_grid_is_named() -> None:
    sweep = made_sweep()
    assert "at the highest rank that was tried, 64" in page(sweep)
    assert "learning rate that was tried" not in page(sweep)
    for part in ("settings", "arms"):
        sweep[part] = [s for s in sweep[part] if s["learning_rate"] == RATES[-1]]
    assert "Only one learning rate was tried, 0.001" in page(sweep)


def test_a_difference_far_from_all_others_is_an_arrow_with_its_value() -> None:
    sweep = made_sweep()
    assert "not drawn to scale" not in page(sweep)
    sweep["settings"][-1]["difference_to_best"] = {"value": 2.5, "low": 2.4, "high": 2.6}
    made = page(sweep)
    assert made.count('class="arrow"') == 1 and "not drawn to scale" in made and ">+2.5</text>" in made
    assert ">+0.03</text>" in made, "the others keep their scale"


def test_a_sweep_of_one_arm_makes_a_page() -> None:
    sweep = made_sweep()
    sweep["arms"] = sweep["arms"][:1]
    sweep["settings"] = [s for s in sweep["settings"] if s["name"] == "r8-lr0.0001"]
    sweep["settings"][0].update(
        difference_to_best={"value": 0.0, "low": 0.0, "high": 0.0},
        tied=True,
        seeds=[7],
        seed_spread=None,
        compared_seeds=[7],
    )
    sweep.update(seed_noise_at={}, power=None, failed={}, winner=sweep["settings"][0]["name"])
    assert not Tags(page(sweep)).open


def test_only_the_largest_sources_are_shown() -> None:
    made = page(made_sweep())
    assert "the first 20 of 24 by rows" in made
    assert "<td>source 19</td>" in made and "<td>source 20</td>" not in made


@pytest.mark.parametrize("low, high, log", [(0.0, 500.0, False), (-0.003, 0.11, False), (0.012, 2.4, True)])
def test_ticks_are_round_and_within_the_ends(low: float, high: float, log: bool) -> None:
    ticks = Scale(low, high, 0, 100, log).ticks()
    assert 3 <= len(ticks) <= 8
    assert all(low <= t <= high for t in ticks)
    assert all(len(f"{t:g}".strip("-0.")) <= 2 for t in ticks)


def test_the_task_and_general_chat_are_drawn_apart_where_training_recorded_both() -> None:
    sweep = made_sweep()
    assert "general" not in page(sweep)[page(sweep).index("<div class=panels>") :].partition("<h2>")[0]
    for made in sweep["arms"]:
        mixed = [[s, loss if s % 2 else loss / 100] for s, loss in made["train_curve"]]
        made.update(
            train_curve=mixed, task_curve=made["train_curve"][::2], general_curve=[[90, 0.01], [120, 0.02]]
        )
    drawn = page(sweep)
    assert drawn.count('<polyline class="general"') == len(sweep["arms"])
    assert drawn.count("<polyline") == 2 * len(sweep["arms"])
    assert "Training mixes two losses" in drawn and "log scale" in drawn
    for made in sweep["arms"]:
        made["train_curve"] = []
    assert page(sweep) == drawn, "the mean over a mixed step is not drawn"

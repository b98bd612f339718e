"""The model card of an artifact: measured values only, in Hugging Face's model-index."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from trainer.ship.gates import failed_gates

MEANING = {
    "loss": "token-weighted loss on held-out rows",
    "exact_match": "held-out answers reproduced exactly, token for token, by greedy decoding",
    "general_chat_loss": "loss on the base model's own answers to general questions",
    "ifeval": "IFEval: prompts whose instructions are all followed, strictly",
    "gsm8k": "GSM8K: sums whose last number is right, reasoning asked for",
    "arc_challenge": "ARC-Challenge: right choices, by length-normalised likelihood",
    "mmlu": "MMLU: right choices, by likelihood",
}

BODY = """---
{front}
---
# {name}
{warning}
{description}

{base} fine-tuned with LoRA (rank {rank}, alpha {alpha:g}) on `{source}` by finechat, merged in fp32 and
checked against base + adapter. Made {created} on {processor} ({accelerator}).

## Measured, on rows never trained on
| measure | rows | base | this model | difference [95% interval] |
|---|---|---|---|---|
{table}

Intervals are paired bootstraps over rows, one training seed: they hold the choice of rows, not the
luck of a seed. The test prompts, a fixed list of general ones, and both models' answers: evaluation.html.
{benchmarks}

## Chosen
{reason}.

| arm | validation loss | difference to the best [95% interval] |
|---|---|---|
{arms}

## Use
Serve it with finechat's API, or load the directory with transformers. Licence of the base model:
{licence}; its licence and notice files, where it has them, are in this directory.
"""


def write_card(directory: Path, manifest: dict[str, Any]) -> None:
    """Write README.md into the artifact directory from its manifest."""
    metrics = manifest["evaluation"]["metrics"]
    data = ModelCardData(
        model_name=manifest["name"],
        license=manifest["base_model"]["licence"],
        base_model=manifest["base_model"]["id"],
        library_name="transformers",
        pipeline_tag="text-generation",
        eval_results=[
            EvalResult(
                task_type="text-generation",
                dataset_type=_dataset(metric, manifest),
                dataset_name=_dataset(metric, manifest),
                dataset_split=metric["split"],
                metric_type=metric["name"],
                metric_name=MEANING[metric["name"]],
                metric_value=round(metric["tuned"]["value"], 4),
            )
            for metric in metrics
        ],
    )
    text = BODY.format(
        front=data.to_yaml(),
        name=manifest["name"],
        description=manifest["description"],
        base=manifest["base_model"]["id"],
        rank=manifest["adapter"]["rank"],
        alpha=manifest["adapter"]["alpha"],
        source=manifest["data"]["source"],
        created=manifest["created_at"],
        processor=manifest["hardware"]["processor"],
        accelerator=manifest["hardware"]["accelerator"] or "no GPU",
        warning=_warning(manifest["evaluation"]),
        table="\n".join(map(_metric_row, metrics)),
        benchmarks="".join(f"\n- {benchmark_note(metric)}" for metric in metrics if "benchmark" in metric),
        reason=manifest["selection"]["reason"],
        arms="\n".join(map(_arm_row, manifest["selection"]["arms"])),
        licence=manifest["base_model"]["licence"],
    )
    ModelCard(text).save(directory / "README.md")


def benchmark_note(metric: Mapping[str, Any]) -> str:
    """How a benchmark was run, and whether it can tell anything."""
    record = metric["benchmark"]
    note = (
        f"{metric['name']}: {metric['n']} of {record['of_items']} items of {record['dataset']}, by "
        f"lm-eval's {record['measure']}, {record['shots']}-shot in the chat template; guessing scores "
        f"{record['floor']['value']:.3f}"
    )
    if record["informative"]:
        return note
    return f"{note}. Uninformative: the base is not measurably above that, so no regression could show"


def _warning(evaluation: Mapping[str, Any]) -> str:
    failed = failed_gates(evaluation)
    if not failed:
        return ""
    listed = "".join(f"\n> - {gate}" for gate in failed)
    return (
        f"\n> **It failed its gates and was shipped all the same, by `{evaluation['override']}`:**{listed}\n"
    )


def _dataset(metric: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    return str(metric["benchmark"]["dataset"] if "benchmark" in metric else manifest["data"]["source"])


def _metric_row(metric: dict[str, Any]) -> str:
    return (
        f"| {MEANING[metric['name']]}, {metric['unit']} | {metric['n']} | {metric['base']['value']:.3f} "
        f"| {metric['tuned']['value']:.3f} | {interval(metric['difference'])} |"
    )


def _arm_row(arm: dict[str, Any]) -> str:
    return (
        f"| {arm['name']} | {arm['validation_loss']['value']:.4f} "
        f"| {interval(arm['difference_to_best'], '.4f')} |"
    )


def interval(value: dict[str, float], form: str = ".3f") -> str:
    """`-1.083 [-1.160, -1.003]`"""
    return f"{value['value']:+{form}} [{value['low']:+{form}}, {value['high']:+{form}}]"

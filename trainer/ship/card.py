"""Write the model card of an artifact from its manifest, with measured values only, in the model-index form.

`write_card` writes README.md and, where the base's licence requires one, NOTICE. The card also lists what
was not measured, and takes nothing from elsewhere.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from trainer.judge.gates import failed_gates
from trainer.judge.measures import FOLLOWUP, FOLLOWUP_TO_ALONE, GENERAL, measures, title
from trainer.judge.turns import caveat, turns_of
from trainer.licence import llama_terms
from trainer.objective import Objective
from trainer.objective.score import Measure
from trainer.source_name import HUB, HubName

ON_HUB = re.compile(r"\bhub:([\w.-]+(?:/[\w.-]+)?)")  # the data sets that a manifest's source names

BODY = """---
{front}
---
# {name}
{built_with}{warning}
{description}

[{base}](https://huggingface.co/{base}) fine-tuned {method} by finechat{whole}.

## What it is for, and what it is not
Use it for the task above, in the chat format of the base model, on prompts like the rows of `{source}`. Do
not use it for decisions about people or as a source of facts: its answers were compared with references and
not with the truth. Do not use it for anything that the base model should not be used for.

## Training data
`{source}`{made_with}, fingerprint `{fingerprint}`

| side | rows |
|---|---|
{sides}

Validation rows chose the setting; test rows chose nothing and give the results below.

## Training procedure
| | |
|---|---|
{procedure}

## Results, on rows never trained on
| measure | rows | base | this model | difference [95% interval] |
|---|---|---|---|---|
{results}

Losses have paired bootstrap intervals, shares have score intervals (Wilson; Tango for a difference). They
cover the sampling of rows and not the variation between seeds, because this is one training run.{by_turn}
evaluation.html contains the test prompts, a fixed list of general ones, and both models' answers.
{benchmarks}
{gates}

## How the setting was chosen
{reason}

| setting | seeds | steps | validation {score} | difference to the best of as many steps [95% interval] |
|---|---|---|---|---|
{settings}

## {check}
{merged}, over {positions} target tokens of held-out rows:

| weights | largest logit difference | same most likely token |
|---|---|---|
{merges}

## Use
```python
from transformers import pipeline

chat = pipeline("text-generation", model="{name}")  # this directory, or OWNER/{name}
print(chat([{{"role": "user", "content": "..."}}], max_new_tokens=256)[0]["generated_text"][-1])
```
Or serve it with finechat, or any server with OpenAI's API, and
```python
from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="-")
answer = client.chat.completions.create(
    model="{name}", messages=[{{"role": "user", "content": "..."}}]
)
```

## Limitations
{limitations}

## Licence
{licence}
"""


def write_card(directory: Path, manifest: dict[str, Any], objective: Objective) -> None:
    """Write README.md and NOTICE into the artifact directory, next to the base's licence files."""
    terms = llama_terms(manifest["base_model"]["licence"])
    notice = directory / "NOTICE"
    text = notice.read_text(encoding="utf-8") if notice.exists() else ""
    if terms and terms.notice not in text:
        notice.write_text(f"{text}{terms.notice}\n", encoding="utf-8")
    files = sorted(p.name for p in directory.glob("LICENSE*"))
    front = card_data(manifest, objective, files[0] if files else None).to_yaml()
    ModelCard(_body(manifest, objective, front)).save(directory / "README.md")


def card_data(manifest: dict[str, Any], objective: Objective, licence_file: str | None) -> ModelCardData:
    """Return the card's metadata. `datasets` is set for a data set of the Hub; `language` is not known."""
    source = manifest["data"]["source"]
    on_hub = list(dict.fromkeys(ON_HUB.findall(source)))
    only = HubName.parse(source) if source.startswith(HUB) and not set(",; ") & set(source) else None
    measured = only.repository if only else source
    known = measures(objective)
    return ModelCardData(
        model_name=manifest["name"],
        license=manifest["base_model"]["licence"],
        license_link=licence_file,
        base_model=manifest["base_model"]["id"],
        base_model_relation="finetune",
        datasets=on_hub or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["finechat", *(["lora"] if manifest["adapter"] else []), objective.NAME, "conversational"],
        eval_results=[
            EvalResult(
                task_type="text-generation",
                dataset_type=(dataset := _dataset(metric, measured)),
                dataset_name=dataset,
                dataset_revision=only.revision if only and dataset == measured else None,
                dataset_split=metric["split"],
                metric_type=metric["name"],
                metric_name=title(metric, known),
                metric_value=round(metric["tuned"]["value"], 4),
            )
            for metric in manifest["evaluation"]["metrics"]
        ],
    )


def _dataset(metric: Mapping[str, Any], measured: str) -> str:
    return str(metric["benchmark"]["dataset"]) if "benchmark" in metric else measured


def _body(manifest: dict[str, Any], objective: Objective, front: str) -> str:
    data, base, adapter = manifest["data"], manifest["base_model"], manifest["adapter"]
    terms, check = llama_terms(base["licence"]), manifest["merge_check"]
    python, known = data.get("python_version"), measures(objective)
    return BODY.format(
        front=front,
        name=manifest["name"],
        built_with=f"\n**{terms.built_with}**\n" if terms and terms.built_with else "",
        description=manifest["description"],
        base=base["id"],
        method=f"with {method_of(adapter)}" if adapter else "in full",
        whole="; the adapter is merged, so this\nis a whole model"
        if adapter
        else "; all its weights were trained",
        check="Merge check" if adapter else "Check of the shipped weights",
        merged="The adapter was merged in fp32. The result against base + adapter"
        if adapter
        else "Nothing was merged: every weight is the trained one, rounded. Both compared",
        source=data["source"],
        made_with=f", made from the standard library of Python {python}" if python else "",
        fingerprint=data["fingerprint"],
        sides=_table(data["rows"].items()),
        procedure=_table(_procedure(manifest, objective)),
        results=_table(_metric(metric, known) for metric in manifest["evaluation"]["metrics"]),
        by_turn=f"\n{note}" if (note := by_turn_note(manifest["evaluation"])) else "",
        warning=_warning(manifest["evaluation"]),
        benchmarks="".join(
            f"\n- {benchmark_note(metric)}"
            for metric in manifest["evaluation"]["metrics"]
            if "benchmark" in metric
        ),
        gates=_gates(manifest["evaluation"]),
        reason=". ".join(part for key in ("reason", "power") if (part := manifest["selection"][key])) + ".",
        score=objective.SCORE.name,
        settings=_table(map(_setting, manifest["selection"]["settings"])),
        positions=check["positions"],
        merges=_table(
            [
                *([_merge("merged", check["fp32"])] if check["fp32"] else []),
                _merge("as shipped", check["shipped"]),
            ]
        ),
        limitations="\n".join(f"- {line}" for line in _limitations(manifest, objective)),
        licence=_licence(base["licence"], base["id"]),
    )


def _table(rows: Any) -> str:
    return "\n".join(
        f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in row)} |" for row in rows
    )


def _procedure(manifest: dict[str, Any], objective: Objective) -> list[tuple[str, str]]:
    adapter, base, hardware = manifest["adapter"], manifest["base_model"], manifest["hardware"]
    training = manifest["training"]
    versions = ", ".join(f"{name} {version}" for name, version in manifest["packages"].items())
    return [
        *(
            _of_adapter(adapter, objective)
            if adapter
            else [("method", f"full fine-tuning {objective.METHOD}")]
        ),
        ("learning rate", f"{training['learning_rate']:g}"),
        ("steps", _steps(training)),
        ("seed", f"{training['seed']}"),
        ("engine", _engine(training)),
        ("base", f"{base['id']} at `{base['revision']}`, weights `{base['weights_sha256'][:16]}`"),
        ("configuration", f"`{manifest['config_hash'][:16]}`"),
        ("artifact", f"`{manifest['id']}`, made {manifest['created_at']}"),
        ("hardware", f"{hardware['processor']}, {hardware['cores']} cores; {_accelerator(hardware)}"),
        ("packages", versions),
    ]


def method_of(adapter: dict[str, Any]) -> str:
    """Return `LoRA` or what it is called with other scaling and with DoRA."""
    name = "DoRA" if adapter.get("dora") else "LoRA"
    return f"{name}, scaled by alpha / √rank (rsLoRA)," if adapter.get("rslora") else name


def _of_adapter(adapter: dict[str, Any], objective: Objective) -> list[tuple[str, str]]:
    """Return the method, what else was trained, and which layers were not; older manifests say less."""
    without = adapter.get("without_adapter", {})
    start = adapter.get("started_from")
    rows = [
        ("method", f"{method_of(adapter)} {objective.METHOD}, merged in fp32"),
        ("rank, alpha", f"{adapter['rank']}, {adapter['alpha']:g}"),
        ("on", ", ".join(adapter["target_modules"])),
        (
            "went on from",
            f"the adapter `{start['name']}`, weights `{start['weights_sha256'][:16]}`" if start else "",
        ),
        ("trained whole", ", ".join(adapter.get("modules_to_save", ()))),
        ("not trained", ", ".join(f"{name} ×{count}" for name, count in without.items())),
    ]
    return [(name, value) for name, value in rows if value]


def _steps(training: dict[str, Any]) -> str:
    steps, best = training["steps"], training["best_step"]
    return f"{steps}" if best == steps else f"{best}, the best of {steps} by validation loss"


def _engine(training: dict[str, Any]) -> str:
    engine = f"{training['engine']}, {training['dtype']}"
    frozen = training["quantization"]
    return engine if frozen == "none" else f"{engine}, on a base frozen in {frozen}"


def _accelerator(hardware: dict[str, Any]) -> str:
    return hardware["accelerator"] or "no GPU"


def _metric(metric: dict[str, Any], known: Mapping[str, Measure]) -> list[str]:
    return [
        title(metric, known),
        str(metric["n"]),
        f"{metric['base']['value']:.3f}",
        f"{metric['tuned']['value']:.3f}",
        interval(metric["difference"]),
    ]


def by_turn_note(evaluation: Mapping[str, Any]) -> str:
    """Return how turns were measured, or an empty text if they were not."""
    found = [turns for metric in evaluation["metrics"] if (turns := turns_of(metric))]
    if not found:
        return ""
    note = (
        "The answer at a turn is measured after the reference answers of the turns before it. A whole row is "
        "exact only if all its answers are."
    )
    together = next((turns for turns in found if turns.last > turns.first), None)
    if together:
        note += (
            f" The answers at {together.name} count together, once a conversation, and are exact if all are."
        )
    return note


def benchmark_note(metric: Mapping[str, Any]) -> str:
    """Describe how a benchmark was run, and whether it is informative."""
    record = metric["benchmark"]
    note = (
        f"{metric['name']}: {metric['n']} of {record['of_items']} items of {record['dataset']}, by "
        f"lm-eval's {record['measure']}, {record['shots']}-shot in the chat template; guessing scores "
        f"{record['floor']['value']:.3f}"
    )
    if record["informative"]:
        return note
    return f"{note}. Uninformative: the base is not measurably above that, so this cannot detect a regression"


def _warning(evaluation: Mapping[str, Any]) -> str:
    failed = failed_gates(evaluation)
    if not failed:
        return ""
    listed = "".join(f"\n> - {gate}" for gate in failed)
    return f"\n> **It failed its gates and was shipped with `{evaluation['override']}`:**{listed}\n"


def _gates(evaluation: dict[str, Any]) -> str:
    gates = "; ".join(
        f"{gate['name']} {'passed' if gate['passed'] else '**failed**'} ({gate['detail']})"
        for gate in evaluation["gates"]
    )
    return f"Gates before shipping: {gates}."


def _setting(setting: dict[str, Any]) -> list[str]:
    return [
        setting["name"],
        ", ".join(map(str, setting["seeds"])),
        str(setting["steps"]),
        f"{setting['validation_score']:.4f}",
        _difference(setting),
    ]


def _difference(setting: dict[str, Any]) -> str:
    """Return the difference to the best, and the compared seeds if they are not the setting's own."""
    if setting["difference_to_best"] is None:
        return "left out: no seed in common with the best"
    seeds = setting["compared_seeds"]
    over = "" if seeds == setting["seeds"] else f", over seed {', '.join(map(str, seeds))}"
    return interval(setting["difference_to_best"], ".4f") + over


def _merge(what: str, agreement: dict[str, Any]) -> list[str]:
    difference, same = agreement["max_logit_difference"], agreement["top1_agreement"]
    return [f"{what}, {agreement['dtype']}", f"{difference:.2g}", f"{same:.2%}"]


def _limitations(manifest: dict[str, Any], objective: Objective) -> list[str]:
    """Return what a reader might take for granted and nothing measured."""
    measured = {
        metric["name"]: metric for metric in manifest["evaluation"]["metrics"] if not turns_of(metric)
    }
    lines = [note] if (note := caveat(manifest["evaluation"])) else []
    if general := measured.get(GENERAL.name):
        lines.append(
            f"General chat: the loss on the base model's own answers changed by "
            f"{interval(general['difference'])} {general['unit']} on {general['n']} rows; a positive "
            "change is further from the base model."
        )
    else:
        lines.append("The effect of tuning on general chat was not measured.")
    if FOLLOWUP.name in measured:
        lines.append(
            f"General chat after a conversation: the loss on the same answers changed by "
            f"{interval(measured[FOLLOWUP.name]['difference'])} against the base in the same place, and by "
            f"{interval(measured[FOLLOWUP_TO_ALONE.name]['difference'])} against the base asked without the "
            "conversation."
        )
    rows = measured[objective.SCORE.name]["n"]
    lines += [
        f"The results are on {rows} test rows of the same source as the training rows. Other data, other "
        "languages and longer conversations were not measured.",
        "Safety, bias and truthfulness were not measured. Tuning can weaken the refusals that the "
        "base model was trained for.",
    ]
    return lines


def _licence(licence: str, base: str) -> str:
    terms = llama_terms(licence)
    files = "The base model's licence and notice files, if it has any, are in this directory."
    text = f"This model has the licence of its base model, {base}: `{licence}`. {files}"
    return f"{text}\n\n{terms.notice}" if terms else text


def interval(value: dict[str, float], form: str = ".3f") -> str:
    """Return a difference with its interval, such as `-1.083 [-1.160, -1.003]`."""
    return f"{value['value']:+{form}} [{value['low']:+{form}}, {value['high']:+{form}}]"

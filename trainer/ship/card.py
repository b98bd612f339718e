"""Write the model card of an artifact from its manifest, with measured values only, in the model-index form.

`write_card` writes README.md and, where the base's licence requires one, NOTICE. The card also lists what
was not measured, and takes nothing from elsewhere.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from trainer.judge.measures import measures, title
from trainer.licence import llama_terms
from trainer.objective import Objective
from trainer.ship import card_parts as parts
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
        method=f"with {parts.method_of(adapter)}" if adapter else "in full",
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
        sides=parts.table(data["rows"].items()),
        procedure=parts.table(parts.procedure(manifest, objective)),
        results=parts.table(parts.metric_row(metric, known) for metric in manifest["evaluation"]["metrics"]),
        by_turn=f"\n{note}" if (note := parts.by_turn_note(manifest["evaluation"])) else "",
        warning=parts.warning(manifest["evaluation"]),
        benchmarks="".join(
            f"\n- {parts.benchmark_note(metric)}"
            for metric in manifest["evaluation"]["metrics"]
            if "benchmark" in metric
        ),
        gates=parts.gates(manifest["evaluation"]),
        reason=". ".join(part for key in ("reason", "power") if (part := manifest["selection"][key])) + ".",
        score=objective.SCORE.name,
        settings=parts.table(map(parts.setting_row, manifest["selection"]["settings"])),
        positions=check["positions"],
        merges=parts.table(
            [
                *([parts.merge_row("merged", check["fp32"])] if check["fp32"] else []),
                parts.merge_row("as shipped", check["shipped"]),
            ]
        ),
        limitations="\n".join(f"- {line}" for line in parts.limitations(manifest, objective)),
        licence=parts.licence(base["licence"], base["id"]),
    )

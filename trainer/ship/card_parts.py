"""Put the parts of a model card into words: its tables, notes and limitations."""

from collections.abc import Mapping
from typing import Any

from trainer.judge.gates import failed_gates
from trainer.judge.measures import FOLLOWUP, FOLLOWUP_TO_ALONE, GENERAL, title
from trainer.judge.turns import caveat, turns_of
from trainer.licence import llama_terms
from trainer.objective import Objective
from trainer.objective.score import Measure


def table(rows: Any) -> str:
    return "\n".join(
        f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in row)} |" for row in rows
    )


def procedure(manifest: dict[str, Any], objective: Objective) -> list[tuple[str, str]]:
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


def metric_row(metric: dict[str, Any], known: Mapping[str, Measure]) -> list[str]:
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


def warning(evaluation: Mapping[str, Any]) -> str:
    failed = failed_gates(evaluation)
    if not failed:
        return ""
    listed = "".join(f"\n> - {gate}" for gate in failed)
    return f"\n> **It failed its gates and was shipped with `{evaluation['override']}`:**{listed}\n"


def gates(evaluation: dict[str, Any]) -> str:
    gates = "; ".join(
        f"{gate['name']} {'passed' if gate['passed'] else '**failed**'} ({gate['detail']})"
        for gate in evaluation["gates"]
    )
    return f"Gates before shipping: {gates}."


def setting_row(setting: dict[str, Any]) -> list[str]:
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


def merge_row(what: str, agreement: dict[str, Any]) -> list[str]:
    difference, same = agreement["max_logit_difference"], agreement["top1_agreement"]
    return [f"{what}, {agreement['dtype']}", f"{difference:.2g}", f"{same:.2%}"]


def limitations(manifest: dict[str, Any], objective: Objective) -> list[str]:
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


def licence(licence: str, base: str) -> str:
    terms = llama_terms(licence)
    files = "The base model's licence and notice files, if it has any, are in this directory."
    text = f"This model has the licence of its base model, {base}: `{licence}`. {files}"
    return f"{text}\n\n{terms.notice}" if terms else text


def interval(value: dict[str, float], form: str = ".3f") -> str:
    """Return a difference with its interval, such as `-1.083 [-1.160, -1.003]`."""
    return f"{value['value']:+{form}} [{value['low']:+{form}}, {value['high']:+{form}}]"

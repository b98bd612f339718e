"""Say which verbs and flags `python -m trainer` takes."""

import argparse
import difflib
import os
from pathlib import Path

from trainer.config import EXPORT_FORMATS, PUSHED_FORMATS
from trainer.identity import KEEP_OLDER
from trainer.judge.gates import OVERRIDE

VERBS = {
    "run": "run all stages: prepare, sweep, train, merge, evaluate, publish",
    "check": "report what this machine lacks for the configuration",
    "prepare": "get the base model and tokenise the data",
    "sweep": "train every arm of the grid and choose a setting",
    "arm": "train one arm; `sweep` starts this once for each arm",
    "train": "train the chosen setting on all of the data",
    "merge": "merge the trained adapter into the base, and check the result",
    "evaluate": "compare the merged model with the base, and apply the gates",
    "push": "print what would be uploaded to the Hugging Face Hub; --upload uploads it",
    "export": "write the finished artifact as GGUF (llama.cpp, Ollama) and FP8, and its adapter alone",
}
AUTO = "auto"
STAGES = ("run", "prepare", "sweep", "arm", "train", "merge", "evaluate")


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return the parser of `python -m trainer`."""
    whole = argparse.ArgumentParser(prog="python -m trainer", description=description)
    verbs = whole.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, what in VERBS.items():
        sub = verbs.add_parser(verb, help=what, description=what)
        sub.add_argument(
            "--config",
            default="quickstart",
            help=f"a YAML file, the name of a shipped profile, or `{AUTO}`: the largest of these that this "
            "machine can train and reach (default: quickstart)",
        )
        sub.add_argument(
            "--artifacts",
            type=Path,
            default=Path(os.environ.get("ARTIFACTS_DIR", "artifacts")),
            help="directory for all results (default: ARTIFACTS_DIR, or `artifacts`)",
        )
        sub.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE",
            help="override one setting of the file, such as train.max_steps=5; repeatable",
        )  # fmt: skip
        sub.add_argument("--dry-run", action="store_true", help="print the resolved configuration and stop")
        _add_own(verb, sub)
    return whole


def _add_own(verb: str, sub: argparse.ArgumentParser) -> None:
    if verb == "run":
        sub.add_argument(
            OVERRIDE, action="store_true", dest="ship_despite_failed_gates",
            help="publish a model that failed its gates; manifest, card and page say so",
        )  # fmt: skip
    if verb in STAGES:
        sub.add_argument(
            KEEP_OLDER, action="store_true", dest="keep_older_runs",
            help="also use data and runs that other code or packages made, instead of making them again",
        )  # fmt: skip
    if verb == "sweep":
        _add_executor(sub)
    if verb in ("run", "train"):
        sub.add_argument(
            "--processes", type=int, default=1, metavar="N",
            help="processes that share the final training, one per GPU (default: 1). Each arm of the sweep "
            "has one process; with train.shard_base it has N, and arms run one after another",
        )  # fmt: skip
    if verb == "arm":
        sub.add_argument("--rank", type=int, help="default: the lowest of sweep.ranks")
        sub.add_argument("--learning-rate", type=float, help="default: the lowest of sweep.learning_rates")
        sub.add_argument("--seed", type=int, help="default: the first of sweep.seeds")
        sub.add_argument("--steps", type=_positive, help="default: train.max_steps, or train.epochs")
    if verb == "push":
        sub.add_argument("--to", required=True, metavar="OWNER/NAME", help="the model repository")
        sub.add_argument(
            "--format", choices=PUSHED_FORMATS, help="push this export of the model in its place"
        )
        sub.add_argument("--private", action="store_true", help="make a new repository private")
        sub.add_argument("--upload", action="store_true", help="upload it; needs HF_TOKEN")
        sub.add_argument(
            "--allow-override", action="store_true", help=f"upload a model that was shipped by {OVERRIDE}"
        )
    if verb == "export":
        sub.add_argument(
            "--format", action="append", type=_export_format, metavar="FORMAT",
            help=f"{', '.join(EXPORT_FORMATS)}; repeatable (default: all that this model can have)",
        )  # fmt: skip
        sub.add_argument(
            "--check", action="store_true",
            help="compare what llama.cpp answers from each GGUF with the artifact; needs xllamacpp",
        )  # fmt: skip


def _add_executor(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--executor", choices=("local", "ray"), default="local",
        help="where arms run: on this machine, or on a Ray cluster with the options below (default: local)",
    )  # fmt: skip
    sub.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="the Ray cluster (default: RAY_ADDRESS, or the one on this machine)",
    )
    sub.add_argument("--cpus-per-arm", type=int, metavar="N", help="CPUs for each arm (default: 1)")
    sub.add_argument(
        "--gpus-per-arm",
        type=float,
        metavar="N",
        help="GPUs for each arm, or a share of one (default: 1 if the cluster has GPUs)",
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of 1 or more")
    return int(text)


def _export_format(text: str) -> str:
    if text in EXPORT_FORMATS:
        return text
    near = difflib.get_close_matches(text.lower(), EXPORT_FORMATS, 1, 0.5)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(EXPORT_FORMATS)}"
    raise argparse.ArgumentTypeError(f"no such format {text!r}; {hint}")

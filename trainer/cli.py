"""Fine-tune a chat model, choose the best setting, and publish the merged model.

Every stage first completes the stages before it. Exit codes: 0 success, 1 a problem, reported in one line,
130 interrupted.
"""

import argparse
import difflib
import errno
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from trainer.config import EXPORT_FORMATS, PUSHED_FORMATS, RunConfig
from trainer.config_data import CONFIGS
from trainer.config_file import from_here, load
from trainer.errors import ArmError, ArtifactError, ConfigError, TrainerError
from trainer.identity import KEEP_OLDER
from trainer.judge.gates import OVERRIDE

if TYPE_CHECKING:  # the stages import torch, which takes seconds; a wrong flag must not
    from trainer.fit.run.cluster import Cluster
    from trainer.pipeline import Pipeline

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
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT)
STAGES = ("run", "prepare", "sweep", "arm", "train", "merge", "evaluate")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, and turn expected failures into one line on standard error."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        _run(options)
    except TrainerError as error:
        return _report(str(error))
    except KeyboardInterrupt:
        return _report("interrupted; the same command continues from here", 130)
    except Exception as error:
        if _is_full_disk(error):
            return _report(f"the disk under {options.artifacts} is full; free some and run the same command")
        if _is_out_of_memory(error):
            return _report("out of memory; free some, or lower train.tokens_per_step or sweep.parallel_arms")
        if getattr(error, "errno", None) not in FORBIDDEN:
            raise
        return _report(f"{error}; allow it to this user, or set ARTIFACTS_DIR to another place")
    return 0


def _is_full_disk(error: Exception) -> bool:
    """Recognise a full disk: Python gives a number, safetensors a text, torch a wrong file position."""
    named = "No space left" in str(error) or "unexpected pos" in str(error)
    return named or getattr(error, "errno", None) == errno.ENOSPC


def _is_out_of_memory(error: Exception) -> bool:
    """Recognise too little memory: Python has a class for it, and torch says it in two ways."""
    texts = ("out of memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(text in str(error).lower() for text in texts)


def _run(options: argparse.Namespace) -> None:
    overrides = [*options.set, *_arm_settings(options)]
    if options.config == AUTO:
        from trainer import auto_profile

        _quieten_libraries()
        options.config, why = auto_profile.choose(overrides, options.artifacts)
        print(f"{AUTO}: {why}", file=sys.stderr, flush=True)
    config = load(_config_path(options.config), overrides)
    if options.verb == "check" or options.dry_run:
        print(config.model_dump_json(indent=2), flush=True)
    if options.dry_run:
        return
    _quieten_libraries()
    if options.verb == "push":
        _push(config, options)
        return
    if options.verb == "export":  # it reads what a run has made and needs no GPU
        from trainer.ship.export import export

        export(config, options.artifacts, options.format or (), options.check)
        return
    from trainer import hashes, preflight

    hashes.keep_in(options.artifacts)
    # torchrun and accelerate set WORLD_SIZE to the number of processes that run this line.
    processes = getattr(options, "processes", int(os.environ.get("WORLD_SIZE", "1")))
    preflight.check_processes(config, options.verb, processes)
    preflight.check(config, trains_here=getattr(options, "executor", "local") == "local")
    if options.verb == "check":
        _check(config, options)
        return
    try:
        options.artifacts.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(
            f"{options.artifacts} cannot be made ({error.strerror}); set ARTIFACTS_DIR to another place"
        ) from None
    if options.verb == "arm" and config.train.engine == "unsloth":
        import trainer.engines.unsloth  # noqa: F401  patches what the next import brings in
    from trainer.pipeline import Pipeline

    ship_despite = options.verb == "run" and options.ship_despite_failed_gates
    pipeline = Pipeline(
        config,
        options.artifacts,
        _arm_command(options),
        _cluster(config, options),
        processes,
        ship_despite,
        options.keep_older_runs,
    )
    if options.verb == "arm":
        _train_arm(config, pipeline, options)
    else:
        pipeline.run(until="publish" if options.verb == "run" else options.verb)


def _arm_settings(options: argparse.Namespace) -> list[str]:
    """Return the flags of `arm` as settings of the sweep, whose ranges hold for them too."""
    flags = {"sweep.ranks": "rank", "sweep.learning_rates": "learning_rate", "sweep.seeds": "seed"}
    given = {setting: getattr(options, flag, None) for setting, flag in flags.items()}
    return [f"{setting}=[{value}]" for setting, value in given.items() if value is not None]


def _cluster(config: RunConfig, options: argparse.Namespace) -> "Cluster | None":
    if options.verb != "sweep":
        return None
    if options.executor == "local":
        for name in ("address", "cpus_per_arm", "gpus_per_arm"):
            if getattr(options, name) is not None:
                raise ConfigError(f"--{name.replace('_', '-')} needs --executor ray")
        return None
    from trainer.fit.run.cluster import connect

    cpus = 1 if options.cpus_per_arm is None else options.cpus_per_arm
    return connect(options.address, cpus, options.gpus_per_arm, config.train.device)


def _train_arm(config: RunConfig, pipeline: "Pipeline", options: argparse.Namespace) -> None:
    from trainer.fit.arm import arms
    from trainer.fit.run.adapter import check_adapter
    from trainer.fit.run.train import train

    arm = arms(config)[0]
    base, prepared = pipeline.found_or_made()
    if config.lora and arm.setting.rank:
        check_adapter(base.directory, [arm.setting.rank], config.lora)
    try:
        train(config, base, prepared, arm, options.steps, options.artifacts, options.keep_older_runs)
    except (MemoryError, RuntimeError) as error:
        if _is_out_of_memory(error):
            raise ArmError(f"{arm.name}: out of memory; lower train.tokens_per_step") from None
        raise


def _check(config: RunConfig, options: argparse.Namespace) -> None:
    from trainer.pipeline import Pipeline

    Pipeline(config, options.artifacts, arm_command=[]).check()


def _push(config: RunConfig, options: argparse.Namespace) -> None:
    from trainer.ship.push import push

    what = (options.private, options.upload, options.allow_override, options.format)
    push(config, options.artifacts, options.to, *what)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trainer", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
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
    return parser


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


def _config_path(name: str) -> Path:
    shipped = CONFIGS / f"{name}.yaml"
    return shipped if shipped.is_file() else Path(name)


def _arm_command(options: argparse.Namespace) -> list[str]:
    config = _config_path(options.config)
    command = ["arm", "--config", str(config.absolute()), "--artifacts", str(options.artifacts.absolute())]
    if options.keep_older_runs:
        command.append(KEEP_OLDER)
    return command + [part for value in options.set for part in ("--set", from_here(value))]


def _quieten_libraries() -> None:
    """Turn off progress bars and telemetry of libraries. Must run before they are imported."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    # Threads that spin while they wait cost a busy machine three quarters of its speed.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _report(message: str, code: int = 1) -> int:
    print(f"trainer: {message}", file=sys.stderr, flush=True)
    return code
